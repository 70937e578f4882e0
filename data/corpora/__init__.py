"""Data sets that the project makes: commands, prompts, names, keywords of manifests."""
