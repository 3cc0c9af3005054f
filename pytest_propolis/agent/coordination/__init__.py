"""The embedded key-value store of the nodes of a run, which this agent serves."""
