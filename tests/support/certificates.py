"""Certificates of an authority that lives as long as a test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)


@dataclass(frozen=True)
class Certificate:
    """PEM files: the chain, its key (PKCS #8, which is what Java reads), and both in one."""

    chain: Path
    key: Path
    both: Path


class Authority:
    """Issues certificates; `root` is the PEM file to trust."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._authority = trustme.CA()
        self.root = directory / "root.pem"
        self._authority.cert_pem.write_to_path(self.root)

    def issue(self, name: str) -> Certificate:
        """A certificate for a host name, an address, or (as `name@…`) a client."""
        issued = self._authority.issue_cert(name)
        stem = name.replace("@", "-at-")
        made = Certificate(*(self._directory / f"{stem}.{part}.pem" for part in ("chain", "key", "both")))
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        key = load_pem_private_key(issued.private_key_pem.bytes(), None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        made.chain.write_bytes(chain)
        made.key.write_bytes(key)
        made.key.chmod(0o600)
        made.both.write_bytes(key + chain)
        return made
