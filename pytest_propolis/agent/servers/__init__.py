"""Servers of the Propolis API, created by an agent or standalone."""
