"""The scheduler on simulated hosts."""
