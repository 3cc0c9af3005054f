"""The messages between hosts and agents, and the data types that they share with the engine."""
