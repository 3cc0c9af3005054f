"""Channels to a guest: how streams of bytes reach its commands, and come back from them."""
