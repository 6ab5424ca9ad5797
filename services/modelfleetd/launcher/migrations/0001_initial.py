"""Launches, what they intend and did, what befell them, and the fence."""

from alembic import op

from modelfleetd.kit import idempotency

revision = "0001"
down_revision = None

SCHEMA = r"""
-- Epochs: whoever claims a launch takes the next one, and platforms refuse every older one.
CREATE SEQUENCE fence;

CREATE TABLE launches (
    id                text PRIMARY KEY CHECK (id ~ '^[a-z][a-z0-9_-]{0,62}$'),
    -- In the order of creation, for pages.
    number            bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    uid               uuid NOT NULL UNIQUE,
    model_type        text NOT NULL,
    actor             text NOT NULL,
    state             text NOT NULL CHECK (state IN (
                          'PENDING', 'ESTIMATING', 'AWAITING_APPROVAL', 'PREPARING', 'SHIFTING', 'FINALIZING',
                          'SUCCEEDED', 'ROLLING_BACK', 'ROLLED_BACK', 'CANCELLED', 'FAILED')),
    -- Waits for the route: does not count as active yet.
    queued            boolean NOT NULL,
    version           bigint NOT NULL CHECK (version >= 1),
    epoch             bigint NOT NULL CHECK (epoch >= 0),
    lease_holder      text,
    -- By this database's clock.
    lease_expire_time timestamptz,
    next_due_time     timestamptz,
    -- Everything else: the launch as a document.
    body              jsonb NOT NULL,
    create_time       timestamptz NOT NULL,
    update_time       timestamptz NOT NULL,
    end_time          timestamptz,
    CONSTRAINT ended CHECK ((end_time IS NOT NULL) = (state IN ('SUCCEEDED', 'ROLLED_BACK', 'CANCELLED', 'FAILED'))),
    CONSTRAINT due_until_ended CHECK ((next_due_time IS NULL) = (end_time IS NOT NULL)),
    CONSTRAINT whole_lease CHECK ((lease_holder IS NULL) = (lease_expire_time IS NULL)),
    CONSTRAINT queued_is_pending CHECK (NOT queued OR state IN ('PENDING', 'CANCELLED'))
);
CREATE UNIQUE INDEX one_active_launch_per_route ON launches (model_type) WHERE end_time IS NULL AND NOT queued;
CREATE INDEX launches_due ON launches (next_due_time) WHERE end_time IS NULL;
CREATE INDEX launches_queued ON launches (model_type, number) WHERE end_time IS NULL AND queued;
CREATE INDEX launches_of_route ON launches (model_type, number);
CREATE INDEX launches_active ON launches (number) WHERE end_time IS NULL;

-- What was about to be done; without an outcome while nobody knows whether it was.
CREATE TABLE intents (
    launch      text NOT NULL REFERENCES launches,
    number      integer NOT NULL CHECK (number >= 1),
    act         text NOT NULL,
    key         text NOT NULL UNIQUE,
    step        integer NOT NULL,
    region      text NOT NULL,
    epoch       bigint NOT NULL,
    content     jsonb NOT NULL,
    create_time timestamptz NOT NULL,
    outcome     text,
    settle_time timestamptz,
    PRIMARY KEY (launch, number),
    CONSTRAINT settled CHECK ((outcome IS NULL) = (settle_time IS NULL))
);
CREATE UNIQUE INDEX one_unsettled_intent_per_launch ON intents (launch) WHERE outcome IS NULL;

CREATE TABLE events (
    launch   text NOT NULL REFERENCES launches,
    sequence bigint NOT NULL CHECK (sequence >= 1),
    time     timestamptz NOT NULL,
    type     text NOT NULL,
    message  text NOT NULL,
    step     integer NOT NULL,
    region   text NOT NULL,
    epoch    bigint NOT NULL,
    actor    text NOT NULL,
    PRIMARY KEY (launch, sequence)
);

CREATE TABLE gate_verdicts (
    launch  text NOT NULL REFERENCES launches,
    number  bigint GENERATED ALWAYS AS IDENTITY,
    verdict jsonb NOT NULL,
    PRIMARY KEY (launch, number)
);

-- Spans that are over and not exported yet. Their ids are made of what they are, so exporting twice is harmless.
CREATE TABLE spans (
    number  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    span    jsonb NOT NULL
);

-- What only one replica needs to do, and which one does.
CREATE TABLE duties (
    name        text PRIMARY KEY,
    holder      text NOT NULL,
    expire_time timestamptz NOT NULL
);
"""


def upgrade() -> None:
    op.execute(idempotency.TABLE)
    op.execute(SCHEMA)
