"""From audio to text with a trained model: batches, long recordings, streams.

longform → recogniser → programs (model_programs, or a bundle's) → offline | stream
"""
