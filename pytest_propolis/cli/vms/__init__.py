"""Commands that drive VMs from a shell."""
