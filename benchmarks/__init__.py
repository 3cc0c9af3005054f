"""The benchmarks: ``python -m benchmarks`` measures speed and cost, and prints one table."""
