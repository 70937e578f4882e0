"""Protocols of clients, each an adapter over the same engine."""
