"""Disk images: what their headers say, which files they refer to, and qcow2 overlays."""
