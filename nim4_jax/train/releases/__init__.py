"""Encoder releases: stage 1 publishes when CKA says that it changed; others follow."""
