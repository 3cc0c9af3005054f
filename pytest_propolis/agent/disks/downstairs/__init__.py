"""Kinds of downstairs, and the interface that volumes use."""
