"""Guest operating systems: how to boot, log in to and reboot them."""
