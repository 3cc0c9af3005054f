"""HTTP to a VM's server without the project's client, for the raw response."""

from __future__ import annotations

import httpx

from pytest_propolis.vm.vm import TestVm


def http(vm: TestVm) -> httpx.AsyncClient:
    """Open a client for the paths below the VM's base URL."""
    endpoint = vm.endpoint
    transport = httpx.AsyncHTTPTransport(uds=str(endpoint.uds) if endpoint.uds else None)
    return httpx.AsyncClient(transport=transport, base_url=endpoint.base_url, timeout=30)
