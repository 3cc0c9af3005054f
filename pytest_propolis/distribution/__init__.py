"""pytest-xdist: which worker works on which host."""
