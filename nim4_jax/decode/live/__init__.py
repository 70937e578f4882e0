"""Streams on the host: packets in, events out, many streams a call of the device.

audio_sources → listener (session, slots, batch) → events → display
"""
