"""Forms of products and sums that XLA's CPU computes faster than the plain ones.

`switch.choose` is the only way in: TPUs and GPUs see the plain forms.
"""
