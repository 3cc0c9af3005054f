"""The scheduler of a run: which test runs where and when, and where templates are made."""
