"""The engine: QEMU behind the Propolis server API, one `VmServer` for one virtual machine."""
