"""Parsing of audio containers: streams of a file, damaged or joined ones included.

A length that a header states is an estimate: writers of pipes do not know it, recorders
crash before they write it, and files are joined end to end. These modules look at the
bytes and lay a file out as the parts that a decoder can read to their ends.
"""
