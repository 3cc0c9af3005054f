"""What hosts make and pass on to each other."""
