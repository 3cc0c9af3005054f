"""Components of an instance spec as devices of QEMU."""
