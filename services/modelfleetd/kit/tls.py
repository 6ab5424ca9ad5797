"""Certificates of a server, read again whenever their files change."""

from __future__ import annotations

import logging
from pathlib import Path

import grpc

from modelfleet.transport import Tls
from modelfleetd.kit.config import ServiceConfig

_log = logging.getLogger(__name__)


def server_credentials(config: ServiceConfig) -> grpc.ServerCredentials:
    """Returns credentials from the configured files.

    Where authorities are configured, callers must show a certificate, tokens or not: services have nothing else to say
    who they are, and grpc does not ask for a certificate that it would not insist on. People whose tokens say who they
    are come through a front door that has a certificate, or hold one.

    Raises:
        ValueError: a file is not what it should be.
        OSError: a file cannot be read.
    """
    # grpc would only say that it cannot listen.
    Tls(config.tls_ca or None, config.tls_cert, config.tls_key).check()
    files = _Files(config)
    initial = files.read()
    return grpc.dynamic_ssl_server_credentials(
        initial,
        files.changed,  # type: ignore[arg-type]  # grpc takes None for "no change"; its stubs do not
        require_client_authentication=bool(config.tls_ca),
    )


class _Files:
    def __init__(self, config: ServiceConfig) -> None:
        self._config = config
        self._state = self._look()

    def _look(self) -> tuple[tuple[int, int], ...]:
        paths = filter(None, (self._config.tls_cert, self._config.tls_key, self._config.tls_ca))
        found = [Path(path).stat() for path in paths]
        return tuple((stat.st_mtime_ns, stat.st_ino) for stat in found)

    def read(self) -> grpc.ServerCertificateConfiguration:
        config = self._config
        pair = (Path(config.tls_key).read_bytes(), Path(config.tls_cert).read_bytes())
        roots = Path(config.tls_ca).read_bytes() if config.tls_ca else None
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by grpc at each handshake: returns the new certificates, or None where nothing changed."""
        try:
            state = self._look()
            if state == self._state:
                return None
            fresh = self.read()
        except OSError:
            # In the middle of a replacement; the next handshake looks again.
            _log.warning("cannot read the certificates; keeping the ones in use")
            return None
        self._state = state
        _log.info("certificates reloaded")
        return fresh
