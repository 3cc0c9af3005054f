"""Nodes that work together: key-values, barriers, batons."""
