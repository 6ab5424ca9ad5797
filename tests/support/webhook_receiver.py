"""A service of the organisation that is told of launches: it fails, hangs and answers as a test wants it to."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SECRET = b"3f0d9c1b7a52e8846d1f"


@dataclass(frozen=True)
class Request:
    """What was received."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def key(self) -> str:
        return self.headers["Modelfleet-Key"]

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass
class Receiver:
    """Answers with each of `answers` in turn, then with 200 and `reply`; None hangs until the end."""

    url: str
    answers: list[int | None] = field(default_factory=list)
    reply: bytes = b""
    requests: list[Request] = field(default_factory=list)
    # What it has done: once for each key, as a receiver that honours keys.
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    def keys(self, kind: str) -> list[str]:
        """Keys of the requests about one kind, in order."""
        return [request.key for request in self.requests if request.document.get("kind") == kind]

    def configuration(self, folder: Path, *, more: str = "") -> str:
        """Writes a configuration with it as `chat`; returns where."""
        (folder / "secret").write_bytes(SECRET + b"\n")
        path = folder / "webhooks.yaml"
        path.write_text(f"webhooks:\n- name: chat\n  url: {self.url}\n  secret_file: {folder / 'secret'}\n{more}")
        return str(path)


@contextmanager
def webhook_receiver(*answers: int | None) -> Iterator[Receiver]:
    """Runs a receiver until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = Request(dict(self.headers), body)
            found.requests.append(request)
            answer = found.answers.pop(0) if found.answers else 200
            if answer is None:
                found.over.wait(60)
                return
            if answer == 200:
                found.done[request.key] = request.document
            self.send_response(answer)
            if 300 <= answer < 400:
                self.send_header("Location", f"{found.url}/elsewhere")
            self.send_header("Content-Length", str(len(found.reply)))
            # Whoever has asked may be gone by now.
            with contextlib.suppress(ConnectionError):
                self.end_headers()
                self.wfile.write(found.reply)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = Receiver(f"http://127.0.0.1:{server.server_address[1]}/hook", list(answers))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
