"""Networks between VMs: switches in the agent, their ports, and trunks between hosts."""
