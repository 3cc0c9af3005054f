"""What the agent keeps of disks: images, forks, replicated volumes, and the space that they take."""
