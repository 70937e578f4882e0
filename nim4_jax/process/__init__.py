"""What a command does to its process: logs, errors, exit codes, caches, allocator."""
