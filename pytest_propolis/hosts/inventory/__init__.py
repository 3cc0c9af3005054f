"""Which hosts a run may use, and what each of them offers."""
