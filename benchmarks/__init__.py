"""How fast and how light the project is: ``python -m benchmarks`` measures it and prints one table."""
