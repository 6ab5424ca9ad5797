"""Alerts, their delivery, and silences."""

from alembic import op

revision = "0005"
down_revision = "0004"

SQL = ""


def upgrade() -> None:
    if SQL:
        op.execute(SQL)
