"""The agent: the one process on a host that owns every VM, disk and directory of a run there."""
