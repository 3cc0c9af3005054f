"""The status of a run: what runs where, what waits and why."""
