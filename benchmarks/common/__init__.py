"""Shared parts of the benchmarks: options, figures, samples, and the project without pytest."""
