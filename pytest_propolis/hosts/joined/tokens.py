"""The token by which a machine and a run authenticate each other."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import ssl
from dataclasses import dataclass, field
from typing import Final, Self

from ...errors import SettingsError

__all__ = ["JoinToken"]

_TOKEN: Final = re.compile(r"([0-9a-f]{32})([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A secret of one run, with the hash of the certificate that the run made for itself.

    By the hash the machine recognizes the run, before it sends the secret, by which the run recognizes the machine.
    """

    secret: str = field(repr=False)
    certificate_sha256: str

    @classmethod
    def new(cls, certificate: str) -> Self:
        """Return a token with a new secret.

        :param certificate: PEM; its private key may follow.
        """
        end = certificate.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)
        return cls(secrets.token_hex(16), hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate[:end])).hexdigest())

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        :raises SettingsError: when it is not a token.
        """
        if not (match := _TOKEN.fullmatch(text.strip())):
            raise SettingsError(
                f"a token has 96 hexadecimal digits, and this one has {len(text)} characters",
                hint="copy the whole command that pytest shows when it begins to listen",
            )
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return self.secret + self.certificate_sha256

    def admits(self, secret: str) -> bool:
        """Return whether this is the run's secret."""
        return hmac.compare_digest(secret.encode(), self.secret.encode())

    def is_of(self, certificate: bytes | None) -> bool:
        """Return whether a certificate (DER) is the run's."""
        return hashlib.sha256(certificate or b"").hexdigest() == self.certificate_sha256
