"""Key-value stores through which nodes coordinate."""
