"""Hotwords: names found in what was heard, exactly and nearly."""
