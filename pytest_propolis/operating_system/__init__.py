"""The operating system: processes, children, and properties of the host."""
