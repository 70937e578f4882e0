"""CPU-specific forms of products and sums that XLA compiles to faster code.

`switch.choose` is the only way in: TPUs and GPUs see the plain forms.
"""
