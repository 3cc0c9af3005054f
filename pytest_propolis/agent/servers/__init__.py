"""Servers of the Propolis API, as an agent makes them or as they stand alone."""
