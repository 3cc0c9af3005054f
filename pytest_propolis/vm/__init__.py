"""Virtual machines as a test sees them."""
