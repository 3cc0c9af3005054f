"""What a person looks at during and after a run."""
