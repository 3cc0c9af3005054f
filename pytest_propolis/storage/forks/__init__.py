"""Writable forks of artifacts, in constant time where the file system can: ZFS, reflinks, qcow2 overlays, copies."""
