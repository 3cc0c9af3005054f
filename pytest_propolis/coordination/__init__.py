"""Nodes that coordinate: key-values, barriers, batons, locks, and poison."""
