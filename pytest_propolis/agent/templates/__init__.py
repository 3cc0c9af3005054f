"""Templates of the agent: how they are made and shared, and forks that stand by."""
