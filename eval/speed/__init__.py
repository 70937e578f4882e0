"""Speed against peers, one module a benchmark of `nim4 bench`."""
