"""The instance spec of a VM: component keys, PCI slots, and the spec itself."""
