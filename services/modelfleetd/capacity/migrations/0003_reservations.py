"""Reservations that wait, and what is known of their holders."""

from alembic import op

revision = "0003"
down_revision = "0002"

SQL = """
ALTER TABLE reservations
    ADD COLUMN tier                     text CHECK (tier IN ('TIER0', 'TIER1', 'TIER2', 'TIER3', 'TIER4')),
    -- How long it lives without being activated, from when it is held or renewed.
    ADD COLUMN time_to_live             interval NOT NULL DEFAULT interval '1 hour',
    ADD COLUMN expected_release_time    timestamptz,
    ADD COLUMN expected_retain_duration interval NOT NULL DEFAULT interval '0',
    -- What it waits for, as it was planned last.
    ADD COLUMN promises                 jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN expected_hold_time       timestamptz,
    ADD COLUMN position                 integer NOT NULL DEFAULT 0,
    ADD COLUMN message                  text NOT NULL DEFAULT '',
    ADD COLUMN hold_time                timestamptz,
    ADD COLUMN renew_time               timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN holder_absent            boolean NOT NULL DEFAULT false,
    -- What the settlement asked to keep; empty: all that was left.
    ADD COLUMN retain                   jsonb NOT NULL DEFAULT '[]',
    -- Grows with every change: what a watch looks at.
    ADD COLUMN version                  bigint NOT NULL DEFAULT 1;
UPDATE reservations SET hold_time = create_time;
ALTER TABLE reservations
    ADD CONSTRAINT only_who_waits_is_promised_something
        CHECK (state = 'PENDING' OR (promises = '[]' AND expected_hold_time IS NULL AND position = 0)),
    ADD CONSTRAINT who_is_held_knows_since_when CHECK (state NOT IN ('HELD', 'SETTLED') OR hold_time IS NOT NULL),
    ADD CONSTRAINT who_waits_is_not_held CHECK (state <> 'PENDING' OR hold_time IS NULL),
    ADD CONSTRAINT only_who_runs_is_missed CHECK (NOT holder_absent OR (state = 'HELD' AND activate_time IS NOT NULL));

DROP INDEX reservations_expiring;
CREATE INDEX reservations_expiring ON reservations (expire_time)
    WHERE state IN ('PENDING', 'HELD') AND activate_time IS NULL;
CREATE INDEX reservations_waiting ON reservations (pool) WHERE state = 'PENDING';
CREATE INDEX reservations_releasing ON reservations (pool, expected_release_time)
    WHERE state = 'HELD' AND expected_release_time IS NOT NULL;
CREATE INDEX reservations_retaining_in ON reservations (pool, retain_until) WHERE retain_until IS NOT NULL;
CREATE INDEX reservations_running ON reservations (renew_time)
    WHERE state = 'HELD' AND activate_time IS NOT NULL AND NOT holder_absent;
CREATE INDEX reservations_absent ON reservations (name) WHERE holder_absent;

-- What the launch's models will use here at its end; NULL: as much as is held.
ALTER TABLE reservation_items ADD COLUMN end_units bigint CHECK (end_units BETWEEN 0 AND hold_units);
"""


def upgrade() -> None:
    op.execute(SQL)
