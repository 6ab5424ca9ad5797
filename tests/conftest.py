"""Fixtures of all tests."""

from tests.support.postgres import database_url, empty_database_url, postgres

__all__ = ["database_url", "empty_database_url", "postgres"]
