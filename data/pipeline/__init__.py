"""From sources to batches: the survey, the plan of an epoch, hints, loading, padding.

`iterators` is what training and evaluation call.
"""
