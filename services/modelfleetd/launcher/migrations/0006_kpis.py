"""What the figures of many launches are made of."""

from alembic import op

revision = "0006"
down_revision = "0005"

SCHEMA = r"""
-- One row for each attempt of a launch that has ended, written in the transaction that ends it. Times in seconds.
CREATE TABLE figures (
    launch       text NOT NULL REFERENCES launches,
    attempt      integer NOT NULL CHECK (attempt >= 1),
    end_time     timestamptz NOT NULL,
    team         text NOT NULL,
    surface      text NOT NULL,
    strategy     text NOT NULL,
    state        text NOT NULL CHECK (state IN ('SUCCEEDED', 'ROLLED_BACK', 'CANCELLED', 'FAILED')),
    duration     float8 NOT NULL CHECK (duration >= 0),
    -- By state, and by cause; small: there are as many as there are words for them.
    phases       jsonb NOT NULL,
    waits        jsonb NOT NULL,
    people_wait  float8 NOT NULL CHECK (people_wait >= 0),
    -- Who turned it round, by kind; empty where nobody did.
    cause        text NOT NULL,
    failed_gates jsonb NOT NULL,
    PRIMARY KEY (launch, attempt)
);
CREATE INDEX figures_by_end ON figures (end_time);
CREATE INDEX figures_of_team ON figures (team, end_time);
CREATE INDEX figures_of_surface ON figures (surface, end_time);
"""


def upgrade() -> None:
    op.execute(SCHEMA)
