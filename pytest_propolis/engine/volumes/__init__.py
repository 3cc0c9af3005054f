"""Disks whose blocks are served from elsewhere."""
