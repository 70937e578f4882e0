"""What audio files are made of: where their streams begin and end, headers mended.

A length that a header states is an estimate: writers of pipes do not know it, recorders
crash before they write it, and files are joined end to end. These modules look at the
bytes and lay a file out as the parts that a decoder can read to their ends.
"""
