"""A real Prometheus: with a past, written as blocks before it starts, or reading metrics as they come."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

from tests.support.addresses import free_address


@contextmanager
def prometheus(folder: Path, samples: Iterable[tuple[str, float, str]]) -> Iterator[str]:
    """Runs Prometheus until the block ends; gives its URL.

    Args:
        folder: an empty one for its data.
        samples: labels with their braces, time in seconds, value as text; of the metric `requests_per_second`.
    """
    missing = [program for program in ("prometheus", "promtool") if shutil.which(program) is None]
    assert not missing, f"{' and '.join(missing)} not found: install the Debian package `prometheus`"
    lines = [f"requests_per_second{labels} {value} {time_:.0f}\n" for labels, time_, value in samples]
    written = folder / "samples.om"
    written.write_text("# TYPE requests_per_second gauge\n" + "".join(lines) + "# EOF\n")
    data = folder / "data"
    # Few large blocks: the file is read once for each.
    create = [
        "promtool",
        "tsdb",
        "create-blocks-from",
        "--max-block-duration=96h",
        "openmetrics",
        str(written),
        str(data),
    ]
    subprocess.run(create, check=True, capture_output=True, timeout=60)
    with _running(folder, data, {}) as url:
        yield url


@contextmanager
def scraping_prometheus(folder: Path, address: str, rules: str) -> Iterator[str]:
    """Runs Prometheus, which reads metrics each second, until the block ends; gives its URL.

    Args:
        folder: an empty one for its data.
        address: host:port of the metrics.
        rules: text of a file of rules.
    """
    written = folder / "rules.yml"
    written.write_text(rules)
    job = {"job_name": "modelfleet", "static_configs": [{"targets": [address]}]}
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(written)],
        "scrape_configs": [job],
    }
    with _running(folder, folder / "data", configuration) as url:
        yield url


@contextmanager
def _running(folder: Path, data: Path, configuration: Mapping[str, object]) -> Iterator[str]:
    missing = [program for program in ("prometheus", "promtool") if shutil.which(program) is None]
    assert not missing, f"{' and '.join(missing)} not found: install the Debian package `prometheus`"
    written = folder / "prometheus.yml"
    written.write_text(yaml.safe_dump({"global": {}, **configuration}))
    address = free_address()
    command = [
        "prometheus", f"--config.file={written}", f"--storage.tsdb.path={data}",
        f"--web.listen-address={address}", "--storage.tsdb.retention.time=100y", "--log.level=error",
    ]  # fmt: skip
    with subprocess.Popen(command) as process:
        try:
            _wait_until_ready(process, address)
            yield f"http://{address}"
        finally:
            process.terminate()


def _wait_until_ready(process: subprocess.Popen[bytes], address: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"http://{address}/-/ready", trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.05)
    raise AssertionError(f"Prometheus did not become ready; it ended with {process.poll()}")


def promtool(*arguments: str, text: bytes | None = None) -> None:
    """Runs promtool, with text on its standard input; what it complains of is what fails."""
    assert shutil.which("promtool"), "promtool not found: install the Debian package `prometheus`"
    done = subprocess.run(["promtool", *arguments], input=text, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
