"""A real Alertmanager, and the receivers that it notifies."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from tests.support.addresses import free_address

# Pages to the pager, everything else to the tickets; no waiting for what could be grouped.
_CONFIGURATION = """
global: {{resolve_timeout: 5m}}
route:
  receiver: tickets
  group_by: [model_type, model]
  group_wait: 0s
  group_interval: 1s
  repeat_interval: 1h
  routes:
    - {{matchers: ['severity="page"'], receiver: pager}}
receivers:
  - {{name: pager, webhook_configs: [{{url: '{url}/pager', send_resolved: true}}]}}
  - {{name: tickets, webhook_configs: [{{url: '{url}/tickets', send_resolved: true}}]}}
"""


@dataclass
class Receivers:
    """What was notified, in order: (receiver, status, labels, annotations) of each alert."""

    url: str
    notified: list[tuple[str, str, dict[str, str], dict[str, str]]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def of(self, receiver: str) -> list[tuple[str, str]]:
        """(status, alertname) of what a receiver was told."""
        return [(status, labels["alertname"]) for to, status, labels, _ in self.notified if to == receiver]

    def take(self, body: dict[str, Any]) -> None:
        """Takes a notification of a group: only what is new about it."""
        self.bodies.append(body)
        for alert in body["alerts"]:
            told = (body["receiver"], alert["status"], alert["labels"], alert["annotations"])
            # A group is told as a whole whenever one of its alerts changes.
            last = next((one for one in reversed(self.notified) if one[0] == told[0] and one[2] == told[2]), None)
            if last is None or last[1] != told[1]:
                self.notified.append(told)


@contextmanager
def receivers() -> Iterator[Receivers]:
    """Runs the receivers until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.take(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Receivers(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Alertmanager:
    """An Alertmanager that can be stopped and started again: it keeps on disk whom it has notified."""

    folder: Path
    receivers: Receivers
    address: str
    configuration: str = _CONFIGURATION
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def start(self) -> None:
        """Starts it, and waits until it is ready."""
        written = self.folder / "alertmanager.yml"
        written.write_text(self.configuration.format(url=self.receivers.url))
        command = [
            "prometheus-alertmanager", f"--config.file={written}", f"--storage.path={self.folder / 'data'}",
            f"--web.listen-address={self.address}", "--cluster.listen-address=", "--log.level=error",
        ]  # fmt: skip
        self._process = subprocess.Popen(command)
        end = time.monotonic() + 60
        while time.monotonic() < end and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/-/ready", trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.02)
        raise AssertionError(f"Alertmanager did not become ready; it ended with {self._process.poll()}")

    def stop(self) -> None:
        """Stops it as its service manager would."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=20)
            self._process = None

    def notifications(self, receiver: str) -> int:
        """How many notifications it has sent to a receiver."""
        return sum(body["receiver"] == receiver for body in self.receivers.bodies)

    def alerts(self) -> list[dict[str, Any]]:
        """All that it knows to go on."""
        found: list[dict[str, Any]] = httpx.get(f"{self.url}/api/v2/alerts", trust_env=False).json()
        return found


@contextmanager
def alertmanager(folder: Path) -> Iterator[Alertmanager]:
    """Runs an Alertmanager with its receivers until the block ends."""
    missing = [program for program in ("prometheus-alertmanager", "amtool") if shutil.which(program) is None]
    assert not missing, f"{' and '.join(missing)} not found: install the Debian package `prometheus-alertmanager`"
    address = free_address()
    with receivers() as found:
        running = Alertmanager(folder, found, address)
        try:
            running.start()
            yield running
        finally:
            running.stop()
