"""Programs that an agent runs on its host for a client."""
