"""What is sampled, and statistics that producers made themselves."""

from alembic import op

revision = "0003"
down_revision = "0002"

SQL = ""


def upgrade() -> None:
    if SQL:
        op.execute(SQL)
