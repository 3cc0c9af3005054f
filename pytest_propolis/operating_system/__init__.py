"""What this project asks of the operating system: processes, children, and figures of the host."""
