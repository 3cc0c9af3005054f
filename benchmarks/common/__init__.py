"""What the benchmarks share: options, figures, samples, and the project without pytest."""
