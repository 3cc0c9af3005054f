"""Saving and forking a machine."""
