"""An authority that signs certificates for tests, and an issuer of tokens."""

from __future__ import annotations

import datetime
import ipaddress
import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

_DAY = datetime.timedelta(days=1)


class Authority:
    """Signs certificates; everything lies as PEM files in one folder."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"modelfleet tests {name}")])
        self._name = subject
        certificate = (
            self._builder(subject, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca = self._write(f"{name}.crt", certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, file: str, *, spiffe_id: str | None = None) -> tuple[str, str]:
        """Issues a certificate for 127.0.0.1, with a SPIFFE id where given; returns the paths of it and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
            x509.DNSName("localhost"),
        ]
        if spiffe_id is not None:
            names.append(x509.UniformResourceIdentifier(spiffe_id))
        certificate = (
            self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, file)]), key.public_key())
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return (
            self._write(f"{file}.crt", certificate.public_bytes(serialization.Encoding.PEM)),
            self._write(f"{file}.key", pem),
        )

    def _builder(self, subject: x509.Name, key: Any) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
        )

    def _write(self, name: str, content: bytes) -> str:
        # As tools that rotate certificates do: a new file takes the old one's place at once.
        fresh = self._directory / f"{name}.new"
        fresh.write_bytes(content)
        return str(fresh.replace(self._directory / name))


class Issuer:
    """Issues JWTs and publishes the keys that check them."""

    def __init__(self, directory: Path, url: str = "https://issuer.test", algorithm: str = "RS256") -> None:
        self.url = url
        self._algorithm = algorithm
        self._file = directory / "jwks.json"
        self._keys: list[dict[str, Any]] = []
        self.rotate()

    @property
    def jwks(self) -> str:
        """Path of the published keys."""
        return str(self._file)

    def rotate(self) -> None:
        """Signs with a new key from now on, and publishes only that one."""
        self._key: Any = (
            rsa.generate_private_key(public_exponent=65537, key_size=2048)
            if self._algorithm == "RS256"
            else ec.generate_private_key(ec.SECP256R1())
        )
        self._key_id = f"key-{time.monotonic_ns()}"
        algorithm = jwt.get_algorithm_by_name(self._algorithm)
        public = json.loads(algorithm.to_jwk(self._key.public_key()))
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps({"keys": [{**public, "kid": self._key_id, "alg": self._algorithm}]}))
        fresh.replace(self._file)

    def token(self, name: str, *, groups: tuple[str, ...] = (), lives: float = 60, **claims: Any) -> str:
        """Returns a token of a person; claims override what it would hold."""
        payload = {
            "sub": name,
            "groups": list(groups),
            "iss": self.url,
            "aud": "modelfleet",
            "exp": time.time() + lives,
            **claims,
        }
        return jwt.encode(payload, self._key, algorithm=self._algorithm, headers={"kid": self._key_id})
