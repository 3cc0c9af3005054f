"""Hosts: the machines that VMs run on, each with its agent."""
