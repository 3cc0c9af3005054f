"""One pytest process's part in a run."""
