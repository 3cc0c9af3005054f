"""Networks between VMs."""
