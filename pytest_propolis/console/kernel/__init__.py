"""The guest's kernel, as far as the console shows it."""
