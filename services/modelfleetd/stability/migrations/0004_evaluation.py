"""What each minute counted as, and what is known of each model now."""

from alembic import op

revision = "0004"
down_revision = "0003"

SQL = ""


def upgrade() -> None:
    if SQL:
        op.execute(SQL)
