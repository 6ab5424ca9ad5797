"""A launch that succeeds may keep more than it held: a mitigation may have booked more for the baseline meanwhile."""

from alembic import op

revision = "0009"
down_revision = "0008"

SQL = """
-- What is left of the hold and of these bookings together is what may be kept; the ledger and the pool bound it.
ALTER TABLE reservation_items DROP CONSTRAINT reservation_items_check1;
ALTER TABLE reservation_items ADD CONSTRAINT reservation_items_retained_units_check CHECK (retained_units >= 0);
"""


def upgrade() -> None:
    op.execute(SQL)
