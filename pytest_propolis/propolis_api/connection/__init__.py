"""Connections to servers: endpoints, sockets, HTTP and websockets."""
