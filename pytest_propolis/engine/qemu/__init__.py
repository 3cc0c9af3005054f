"""QEMU's process: its command line, its monitor, its devices."""
