"""Process-wide settings of a command: logs, errors, exit codes, caches, allocator."""
