"""The markers of tests: their requirements on hosts, and the reasons for skips."""
