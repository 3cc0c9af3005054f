"""Provision a VM on a host before it is created: a session, an image, a server."""
