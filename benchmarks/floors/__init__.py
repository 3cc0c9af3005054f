"""Hand-written floors: the same work with QEMU or a bare server, and nothing else."""
