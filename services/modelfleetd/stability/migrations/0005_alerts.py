"""Alerts, their delivery, and silences."""

from alembic import op

from modelfleetd.kit import idempotency

revision = "0005"
down_revision = "0004"

SQL = """
-- How far alerts have been derived. One row: whoever derives locks it in the transaction that writes what follows, so
-- that each transition happens once, and nobody goes back behind a minute or a revision of the registry that was seen.
CREATE TABLE alerting (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    minute   integer NOT NULL DEFAULT 0,
    revision bigint NOT NULL DEFAULT 0
);
INSERT INTO alerting DEFAULT VALUES;

-- Which minutes of an SLO are about which model: the SLO of a baseline passes on, a model's alerts do not.
CREATE TABLE tenures (
    model        text COLLATE "C" NOT NULL,
    slo          text COLLATE "C" NOT NULL,
    -- The registry's revision that gave the model this SLO. Minutes that were evaluated by an earlier one do not count.
    revision     bigint NOT NULL,
    start_minute integer NOT NULL,
    -- Exclusive; null while it goes on.
    end_minute   integer,
    CHECK (end_minute >= start_minute)
);
CREATE UNIQUE INDEX tenures_open ON tenures (model) WHERE end_minute IS NULL;
CREATE INDEX tenures_ended ON tenures (end_minute) WHERE end_minute IS NOT NULL;

-- Enums have the numbers of the protos; 0 is unset.
CREATE TABLE alerts (
    sequence     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text COLLATE "C" NOT NULL UNIQUE,
    kind         smallint NOT NULL CHECK (kind BETWEEN 1 AND 3),
    severity     smallint NOT NULL CHECK (severity BETWEEN 1 AND 2),
    state        smallint NOT NULL CHECK (state BETWEEN 1 AND 2),
    model_type   text COLLATE "C" NOT NULL,
    model        text COLLATE "C" NOT NULL,
    prediction   text COLLATE "C" NOT NULL,
    metric       smallint NOT NULL CHECK (metric BETWEEN 0 AND 3),
    role         smallint NOT NULL CHECK (role BETWEEN 1 AND 5),
    tier         smallint NOT NULL CHECK (tier BETWEEN 0 AND 5),
    team         text COLLATE "C" NOT NULL,
    on_call      text NOT NULL,
    summary      text NOT NULL,
    response     text NOT NULL,
    start_time   timestamptz NOT NULL,
    end_time     timestamptz,
    resolution   smallint NOT NULL CHECK (resolution BETWEEN 0 AND 2),
    -- Since when what fired at its severity does not fire any more; null while it does.
    calm_since   timestamptz,
    deliver_time timestamptz,
    revision     bigint NOT NULL,
    CHECK ((state = 2) = (end_time IS NOT NULL)),
    CHECK ((state = 2) = (resolution <> 0)),
    CHECK (end_time >= start_time)
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX alerts_firing ON alerts (kind, model, prediction) WHERE state = 1;
CREATE INDEX alerts_order ON alerts (state, sequence DESC);
CREATE INDEX alerts_model ON alerts (model_type, state, sequence DESC);
CREATE INDEX alerts_end_time ON alerts (end_time) WHERE state = 2;

-- What Alertmanager is told: an alert under one set of labels. It knows alerts by their labels, so one whose severity
-- changes is told as over under the old ones and as going on under the new ones.
CREATE TABLE announcements (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    alert      text COLLATE "C" NOT NULL REFERENCES alerts (name) ON DELETE CASCADE,
    labels     jsonb NOT NULL,
    start_time timestamptz NOT NULL,
    end_time   timestamptz,
    -- Why it ended, where the alert itself goes on.
    ending     text NOT NULL DEFAULT ''
);
CREATE UNIQUE INDEX announcements_open ON announcements (alert) WHERE end_time IS NULL;
CREATE INDEX announcements_end_time ON announcements (end_time);

CREATE TABLE silences (
    sequence    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text COLLATE "C" NOT NULL UNIQUE,
    resource    text COLLATE "C" NOT NULL,
    reason      text NOT NULL,
    start_time  timestamptz NOT NULL,
    end_time    timestamptz NOT NULL,
    creator     text NOT NULL,
    ended_by    text NOT NULL DEFAULT '',
    create_time timestamptz NOT NULL,
    CHECK (end_time >= start_time)
);
CREATE INDEX silences_resource ON silences (resource, end_time);
CREATE INDEX silences_end_time ON silences (end_time);
"""


def upgrade() -> None:
    op.execute(SQL)
    op.execute(idempotency.TABLE)
