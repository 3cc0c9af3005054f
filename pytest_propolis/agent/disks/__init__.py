"""The agent's disks: images, forks, replicated volumes, and their disk space."""
