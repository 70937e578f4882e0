"""The server: one process, one device, many clients; `nim4 serve` runs it."""
