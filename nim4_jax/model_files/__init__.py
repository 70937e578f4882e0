"""Models as files: loaded from workdirs and snapshots, packed into one, averaged."""
