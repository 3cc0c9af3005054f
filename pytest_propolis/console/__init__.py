"""The serial console of a guest: what it shows, what is typed into it, and commands run over it."""
