"""VMs without ``await``: an event loop in a thread of its own, and proxies whose methods wait for it."""
