"""Reads the models of an MLflow registry, by its REST API."""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from modelfleet.code.importing import Row, WrongInput
from modelfleet.transport import is_loopback

_PAGE: Final = 1000
_MODELS_PAGE: Final = 100
_MAX_BYTES: Final = 64 << 20
_TIMEOUT: Final = 30.0
_ATTEMPTS: Final = 3

# What MLflow knows; whose a type is, and how a replica is run, it does not.
MAPPING: Final[Mapping[str, Any]] = {
    "type": {"id": "${name}", "purpose": "${model.description}"},
    "model": {
        "id": "${version}",
        "description": "${description}",
        "checkpoint": "${source}",
        "serving_spec": {"artifact": "${source}"},
        "labels": {"mlflow_stage": "${stage}", "mlflow_run_id": "${run_id}"},
    },
}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the credentials elsewhere."""

    def redirect_request(self, *_arguments: Any, **_more: Any) -> None:
        return None


class MlflowRegistry:
    """The model registry of an MLflow tracking server."""

    def __init__(self, url: str, token: str = "") -> None:
        """Makes it.

        Args:
            url: of the server.
            token: a bearer token; without, MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD.

        Raises:
            WrongInput: the URL is none, holds credentials, or would send them in plain text.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise WrongInput("the URL must be http://HOST:PORT or https://HOST")
        if parts.username or parts.password:
            raise WrongInput(
                "credentials do not belong in the URL: set MLFLOW_TRACKING_TOKEN, or give --mlflow-token-file"
            )
        self._url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._headers = {"Accept": "application/json"}
        credentials = _credentials(token)
        if credentials:
            if parts.scheme != "https" and not is_loopback(f"{parts.hostname}:0"):
                raise WrongInput(f"refusing to send credentials to {self._url} without encryption: use https")
            self._headers["Authorization"] = credentials
        self._opener = urllib.request.build_opener(_NoRedirect())

    def rows(self) -> Iterator[Row]:
        """Yields a row for each version of each model. Raises WrongInput where the server does not answer like one."""
        models = {model["name"]: model for model in self._all("registered-models", "registered_models", _MODELS_PAGE)}
        for version in self._all("model-versions", "model_versions", _PAGE):
            name, number = str(version.get("name", "")), str(version.get("version", ""))
            model = models.get(name, {})
            aliases = [each["alias"] for each in model.get("aliases", ()) if str(each.get("version")) == number]
            values = {
                "name": name,
                "version": number,
                "description": version.get("description", ""),
                "source": version.get("source", ""),
                "run_id": version.get("run_id", ""),
                "stage": _stage(version.get("current_stage", "")),
                "status": version.get("status", ""),
                "aliases": aliases,
                "tags": _tags(version),
                "model": {"description": model.get("description", ""), "tags": _tags(model)},
            }
            yield Row(f"{name} version {number}", values)

    def _all(self, collection: str, items: str, page: int) -> Iterator[Any]:
        token, seen = "", set()
        while True:
            answer = self._get(f"{collection}/search", max_results=page, **({"page_token": token} if token else {}))
            yield from answer.get(items, ())
            token = str(answer.get("next_page_token", "") or "")
            if not token:
                return
            if token in seen:
                raise WrongInput(f"{self._url} gives the same page again and again")
            seen.add(token)

    def _get(self, path: str, **query: Any) -> Mapping[str, Any]:
        url = f"{self._url}/api/2.0/mlflow/{path}?{urlencode(query)}"
        request = urllib.request.Request(url, headers=self._headers)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._opener.open(request, timeout=_TIMEOUT) as answer:
                    data = answer.read(_MAX_BYTES + 1)
                break
            except urllib.error.HTTPError as error:
                if error.code < 500 or attempt == _ATTEMPTS:
                    raise WrongInput(
                        f"{self._url} answers {path} with {error.code} {_HINTS.get(error.code, '')}".rstrip()
                    ) from None
            except (OSError, HTTPException) as error:
                if attempt == _ATTEMPTS:
                    raise WrongInput(f"no answer from {self._url}: {getattr(error, 'reason', error)}") from None
            time.sleep(0.2 * attempt)
        if len(data) > _MAX_BYTES:
            raise WrongInput(f"{self._url} answers {path} with more than {_MAX_BYTES >> 20} MiB")
        try:
            found = json.loads(data)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise WrongInput(f"{self._url} is no MLflow server: {path} is not answered with a JSON object")
        return found


_HINTS: Final = {
    401: "(who asks? set MLFLOW_TRACKING_TOKEN, or give --mlflow-token-file)",
    403: "(the caller may not read the registry)",
    404: "(is this the address of an MLflow server?)",
    302: "(a redirect, which is not followed; give the address that it leads to)",
}


def _credentials(token: str) -> str:
    token = token or os.environ.get("MLFLOW_TRACKING_TOKEN", "")
    if token:
        return f"Bearer {token.strip()}"
    name, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if name and password:
        return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
    return ""


def _stage(stage: str) -> str:
    """The stage; MLflow's word for none is left out."""
    return "" if stage == "None" else stage


def _tags(entry: Mapping[str, Any]) -> dict[str, str]:
    return {str(tag["key"]): str(tag.get("value", "")) for tag in entry.get("tags", ())}
