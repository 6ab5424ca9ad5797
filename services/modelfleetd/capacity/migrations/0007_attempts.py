"""A launch that went back may be attempted again: each attempt reserves for itself."""

from alembic import op

revision = "0007"
down_revision = "0006"

SQL = """
ALTER TABLE reservations ADD COLUMN attempt integer NOT NULL DEFAULT 1 CHECK (attempt >= 1);
DROP INDEX reservations_live;
CREATE UNIQUE INDEX reservations_live ON reservations (launch, attempt) WHERE state IN ('PENDING', 'HELD');
"""


def upgrade() -> None:
    op.execute(SQL)
