"""Live streams on the host: packets in, events out, many streams in one device call.

audio_sources → listener (session, slots, batch) → events → display
"""
