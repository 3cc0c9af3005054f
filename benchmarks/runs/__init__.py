"""Whole runs of pytest."""
