"""Servers of the Propolis API that are programs of their own."""
