"""The launches of a route that have not ended, in their order: who is first, and pages of them."""

from alembic import op

revision = "0002"
down_revision = "0001"

SCHEMA = r"""
CREATE INDEX launches_open ON launches (model_type, number) WHERE end_time IS NULL;
DROP INDEX launches_queued;
"""


def upgrade() -> None:
    op.execute(SCHEMA)
