"""Sources of examples: manifests, TFDS, bundled sets, and sets made from other sets.

`opening` turns a specification into a source; `examples` says what a source is.
"""
