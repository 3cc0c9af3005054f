"""The metrics of VMs, for tests."""
