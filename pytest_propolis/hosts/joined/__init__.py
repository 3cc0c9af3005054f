"""Hosts that join a run: machines that connect to it, because nothing can connect to them."""
