"""Attempts that are over, holds, and who has precedence on a route."""

from alembic import op

revision = "0003"
down_revision = "0002"

ATTEMPTS = r"""
-- A launch's row is its present attempt. Those that are over stay here as they ended, with the columns of `launches`.
CREATE TABLE attempts (
    id          text NOT NULL REFERENCES launches,
    attempt     integer NOT NULL CHECK (attempt >= 1),
    state       text NOT NULL CHECK (state IN ('ROLLED_BACK', 'CANCELLED')),
    queued      boolean NOT NULL,
    version     bigint NOT NULL,
    epoch       bigint NOT NULL,
    body        jsonb NOT NULL,
    update_time timestamptz NOT NULL,
    PRIMARY KEY (id, attempt)
);

-- Each attempt is judged afresh.
ALTER TABLE gate_verdicts ADD COLUMN attempt integer NOT NULL DEFAULT 1 CHECK (attempt >= 1);
ALTER TABLE gate_verdicts DROP CONSTRAINT gate_verdicts_pkey;
ALTER TABLE gate_verdicts ADD PRIMARY KEY (launch, attempt, number);

-- Which launch was the last to succeed on a route.
CREATE INDEX launches_succeeded ON launches (model_type, end_time) WHERE state = 'SUCCEEDED';
"""

HOLDS = r"""
CREATE TABLE holds (
    id          text PRIMARY KEY CHECK (id ~ '^[a-z][a-z0-9_-]{0,62}$'),
    -- In the order of creation, for pages.
    number      bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    uid         uuid NOT NULL UNIQUE,
    model       text NOT NULL,
    reason      text NOT NULL,
    launch      text NOT NULL,
    actor       text NOT NULL,
    create_time timestamptz NOT NULL,
    lifted_by   text NOT NULL DEFAULT '',
    lift_reason text NOT NULL DEFAULT '',
    lift_time   timestamptz,
    CONSTRAINT whole_lift CHECK ((lift_time IS NULL) = (lifted_by = ''))
);
CREATE UNIQUE INDEX one_hold_in_force_per_model ON holds (model) WHERE lift_time IS NULL;
CREATE INDEX holds_in_force ON holds (number) WHERE lift_time IS NULL;
CREATE INDEX holds_of_model ON holds (model, number);
"""

PRECEDENCE = r"""
-- A mitigation does not wait for the launch that is active on its route: each route has one of both at most.
ALTER TABLE launches ADD COLUMN mitigation boolean NOT NULL DEFAULT false;
UPDATE launches SET mitigation = true WHERE body->>'strategy' IN ('END_EXPERIMENT', 'ROLL_BACK');
DROP INDEX one_active_launch_per_route;
CREATE UNIQUE INDEX one_active_launch_per_route ON launches (model_type, mitigation)
    WHERE end_time IS NULL AND NOT queued;
"""


def upgrade() -> None:
    op.execute(ATTEMPTS)
    op.execute(HOLDS)
    op.execute(PRECEDENCE)
