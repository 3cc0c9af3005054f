"""Linux: procfs as text, pidfds, parent-death signals."""
