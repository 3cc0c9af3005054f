"""Live migration: source, target, disks, streams."""
