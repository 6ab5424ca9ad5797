"""Who replaced a model as the baseline of its route: what a ROLL_BACK asks, without reading the route's history."""

from alembic import op

revision = "0007"
down_revision = "0006"

SCHEMA = r"""
CREATE INDEX launches_replaced ON launches (model_type, (body ->> 'baseline'), number)
    WHERE state = 'SUCCEEDED' AND body ->> 'strategy' IN ('REPLACE_BASELINE', 'ROLL_BACK');
"""


def upgrade() -> None:
    op.execute(SCHEMA)
