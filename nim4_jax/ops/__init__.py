"""Pure functions on arrays: attention, convolution, CTC, norms, sampling, masks."""
