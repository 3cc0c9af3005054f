"""Output for users during and after a run."""
