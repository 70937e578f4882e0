"""Several processes in one run: they meet, agree, are stopped, and notice a hang."""
