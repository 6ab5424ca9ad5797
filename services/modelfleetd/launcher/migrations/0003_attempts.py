"""Attempts that are over, holds, and who has precedence on a route."""

from alembic import op

revision = "0003"
down_revision = "0002"

PRECEDENCE = r"""
-- A mitigation does not wait for the launch that is active on its route: each route has one of both at most.
ALTER TABLE launches ADD COLUMN mitigation boolean NOT NULL DEFAULT false;
UPDATE launches SET mitigation = true WHERE body->>'strategy' = 'END_EXPERIMENT';
DROP INDEX one_active_launch_per_route;
CREATE UNIQUE INDEX one_active_launch_per_route ON launches (model_type, mitigation)
    WHERE end_time IS NULL AND NOT queued;
"""


def upgrade() -> None:
    op.execute(PRECEDENCE)
