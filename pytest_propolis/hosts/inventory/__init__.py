"""The hosts that a run may use, and their capabilities and capacities."""
