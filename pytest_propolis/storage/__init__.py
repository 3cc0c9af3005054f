"""Files from which virtual machines are built: artifacts, their sources, and overlays on them."""
