"""Files of a guest: how they get in and out."""
