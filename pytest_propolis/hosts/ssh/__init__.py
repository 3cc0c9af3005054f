"""Hosts over SSH: the agent is copied there, started, and monitored from both ends of one connection."""
