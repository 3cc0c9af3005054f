"""Hosts: the machines that VMs run on, each behind its agent."""
