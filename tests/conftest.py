"""Fixtures of all tests."""

import os
import signal

# Tests start PostgreSQL and services from a process in which grpc runs: its handlers of fork() crash the child now and
# then, before it becomes what it should. Read when grpc is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# A shell that starts this in the background has it ignore Ctrl-C, and so would all that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import settings

from tests.support.chance import SEED
from tests.support.postgres import database_url, empty_database_url, postgres

# How long an example takes says more about what else the machine does than about what is tested.
settings.register_profile("modelfleet", deadline=None)
settings.load_profile("modelfleet")

__all__ = ["database_url", "empty_database_url", "postgres"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where workers share the tests, those that take long begin first: no worker is left alone with one at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=_haste)


def _haste(item: pytest.Item) -> tuple[float, int]:
    """Long tests are those that are given more time than usual, and those of processes."""
    limit = item.get_closest_marker("timeout")
    processes = any(item.get_closest_marker(name) for name in ("slow", "e2e", "faults"))
    return -(limit.args[0] if limit else 0.0), 0 if processes else 1


def pytest_report_header() -> str:
    return f"accidents: MODELFLEET_FAULTS={os.environ.get('MODELFLEET_FAULTS', 'some')} MODELFLEET_FAULTS_SEED={SEED}"
