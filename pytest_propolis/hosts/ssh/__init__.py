"""Hosts that SSH reaches: the agent is brought there, started, and watched from both ends of one connection."""
