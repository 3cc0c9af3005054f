"""The virtual processor: models, features, CPUID templates."""
