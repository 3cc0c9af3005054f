"""Direct connections between the agents of two hosts, as a client of both arranges them."""
