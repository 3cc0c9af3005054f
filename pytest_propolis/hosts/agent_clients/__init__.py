"""The clients of an agent: an asynchronous and a synchronous one, with the same errors."""
