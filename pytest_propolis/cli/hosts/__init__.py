"""Commands on other machines, and the one by which a machine joins a run."""
