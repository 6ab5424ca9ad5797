"""Attempts that are over, holds, and who has precedence on a route."""

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    pass
