"""A real MLflow server, as a process of its own: `python mlflow_server.py FOLDER TOKEN` prints its address.

It serves who sends the token, as whatever stands before such a server would have it, and runs from build/mlflow, apart
from the environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

INSTALLED = Path(__file__).parents[2] / "build" / "mlflow"


def main(folder: str, token: str) -> None:
    sys.path.append(str(INSTALLED))
    store = f"sqlite:///{folder}/mlflow.db"
    os.environ |= {"_MLFLOW_SERVER_FILE_STORE": store, "_MLFLOW_SERVER_REGISTRY_STORE": store}
    os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = f"{folder}/artifacts"
    from mlflow.server import app
    from werkzeug.serving import make_server

    def guarded(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if token and environ.get("HTTP_AUTHORIZATION") != f"Bearer {token}":
            start("401 Unauthorized", [("Content-Type", "text/plain")])
            return [b"no token"]
        answer: Iterable[bytes] = app(environ, start)
        return answer

    server = make_server("127.0.0.1", 0, guarded)
    sys.stdout.write(f"http://127.0.0.1:{server.port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
