"""One or two VMs on one host."""
