"""Certificates for servers of tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["make_certificate"]


def make_certificate(directory: Path, address: str = "127.0.0.1") -> tuple[Path, Path]:
    """Make a certificate for an IP address and for localhost; return the files of it and of its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed (package openssl)")
    chain, key = directory / "cert.pem", directory / "key.pem"
    subject = ("-subj", "/CN=store", "-addext", f"subjectAltName=IP:{address},DNS:localhost")
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    command = ("openssl", "req", "-x509", *kind, *subject, "-keyout", str(key), "-out", str(chain))
    subprocess.run(command, check=True, capture_output=True)
    return chain, key
