"""Guest operating systems: what they boot from, how one logs in, how they reboot."""
