"""Freeze windows."""

from alembic import op

revision = "0004"
down_revision = "0003"

SCHEMA = r"""
CREATE TABLE freeze_windows (
    id          text PRIMARY KEY CHECK (id ~ '^[a-z][a-z0-9_-]{0,62}$'),
    uid         uuid NOT NULL UNIQUE,
    version     bigint NOT NULL CHECK (version >= 1),
    actor       text NOT NULL,
    -- Everything else: the window as a document.
    body        jsonb NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL
);
"""


def upgrade() -> None:
    op.execute(SCHEMA)
