"""Training runs: from a config to a trained stage, a pipeline of stages, a cluster job.

start → training (run_settings, initial_state, callbacks) → train.loop
"""
