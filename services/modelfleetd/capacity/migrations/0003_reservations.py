"""Reservations that wait, and what is known of their holders."""

from alembic import op

revision = "0003"
down_revision = "0002"

SQL = """
SELECT 1;
"""


def upgrade() -> None:
    op.execute(SQL)
