"""How QEMU runs guests on this machine: the accelerators and their probe."""
