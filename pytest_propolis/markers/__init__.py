"""What a test declares: checked against hosts, and turned into skip reasons."""
