"""Migration between hosts that share no files."""
