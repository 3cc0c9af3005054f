"""Catalogs of artifacts in TOML files, and the servers and archives that they name."""
