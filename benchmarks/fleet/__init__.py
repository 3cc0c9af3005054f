"""Several hosts, nodes, and what travels between them."""
