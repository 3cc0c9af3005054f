"""Leases of hosts: runs that name the same place take turns at the hosts that they share."""
