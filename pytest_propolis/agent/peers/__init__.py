"""Direct connections between the agents of two hosts, with TLS."""
