"""The training loop and what it needs: step, losses, optimizer, metrics, callbacks."""
