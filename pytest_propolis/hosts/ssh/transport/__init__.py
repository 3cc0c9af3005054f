"""SSH connections, by asyncssh or by OpenSSH, behind one interface."""
