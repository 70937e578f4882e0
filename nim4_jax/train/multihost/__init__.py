"""Multi-host training: start, agreement, preemption, detection of hangs."""
