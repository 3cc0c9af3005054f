"""What carries the shell protocol to the read-eval loop of a guest, and back."""
