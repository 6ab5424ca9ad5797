"""Statistics by minute, 5 min and hour in partitions; bins; how labels are delayed."""

from alembic import op

revision = "0002"
down_revision = "0001"

SQL = ""


def upgrade() -> None:
    if SQL:
        op.execute(SQL)
