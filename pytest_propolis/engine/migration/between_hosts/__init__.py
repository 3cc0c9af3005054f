"""What a migration needs between hosts that share no files."""
