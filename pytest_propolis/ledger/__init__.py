"""What exists on a host and which client owns it, on disk."""
