"""What clients speak: each dialect an adapter over the same engine."""
