"""No replicas of a replaced model go on running without traffic: nothing ever kept them."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute("ALTER TABLE launch_policies DROP COLUMN warm_share_basis_points;")
