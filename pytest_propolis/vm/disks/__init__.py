"""Disks as a test describes them: kinds, handles with a life of their own, and how they are laid out in a VM."""
