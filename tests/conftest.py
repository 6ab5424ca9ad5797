"""Fixtures of all tests."""

import os

# Tests start PostgreSQL and services from a process in which grpc runs: its handlers of fork() crash the child now and
# then, before it becomes what it should. Read when grpc is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from hypothesis import settings

from tests.support.chance import SEED
from tests.support.postgres import database_url, empty_database_url, postgres

# How long an example takes says more about what else the machine does than about what is tested.
settings.register_profile("modelfleet", deadline=None)
settings.load_profile("modelfleet")

__all__ = ["database_url", "empty_database_url", "postgres"]


def pytest_report_header() -> str:
    return f"accidents: MODELFLEET_FAULTS={os.environ.get('MODELFLEET_FAULTS', 'some')} MODELFLEET_FAULTS_SEED={SEED}"
