"""Files that virtual machines are made from: artifacts, where they come from, and overlays on them."""
