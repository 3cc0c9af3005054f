"""The resources that exist on a host and their owners, recorded on disk."""
