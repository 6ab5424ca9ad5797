"""Flavors, pools with balances and ledger, reservations, certificates, estimates, load tests."""

from alembic import op

from modelfleetd.kit import idempotency

revision = "0001"
down_revision = None

SQL = """
CREATE TABLE flavors (
    name        text PRIMARY KEY,
    uid         uuid NOT NULL DEFAULT gen_random_uuid(),
    description text NOT NULL,
    unit_cost   double precision NOT NULL CHECK (unit_cost >= 0),
    version     bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE pools (
    name        text PRIMARY KEY,
    uid         uuid NOT NULL DEFAULT gen_random_uuid(),
    team        text NOT NULL,
    parent      text REFERENCES pools CHECK (parent <> name),
    version     bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX pools_parent ON pools (parent);

-- Usage is what the ledger sums up to. The row is what an admission locks.
CREATE TABLE balances (
    pool           text NOT NULL REFERENCES pools,
    flavor         text NOT NULL REFERENCES flavors,
    region         text NOT NULL,
    nominal_units  bigint NOT NULL CHECK (nominal_units >= 0),
    serving_units  bigint NOT NULL DEFAULT 0 CHECK (serving_units >= 0),
    held_units     bigint NOT NULL DEFAULT 0 CHECK (held_units >= 0),
    retained_units bigint NOT NULL DEFAULT 0 CHECK (retained_units >= 0),
    -- The most that may be used: the quota, or what was used when the quota was cut below it. Only a cut raises it
    -- above the quota, and it falls with every release.
    ceiling_units  bigint NOT NULL,
    PRIMARY KEY (pool, flavor, region),
    CONSTRAINT never_oversold CHECK (serving_units + held_units + retained_units <= ceiling_units)
);
CREATE INDEX balances_flavor ON balances (flavor);

CREATE TABLE ledger (
    sequence    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    time        timestamptz NOT NULL DEFAULT now(),
    pool        text NOT NULL,
    flavor      text NOT NULL,
    region      text NOT NULL,
    account     text NOT NULL CHECK (account IN ('SERVING', 'HELD', 'RETAINED')),
    delta_units bigint NOT NULL CHECK (delta_units <> 0),
    model       text NOT NULL,
    launch      text NOT NULL,
    reservation text NOT NULL,
    actor       text NOT NULL,
    reason      text NOT NULL,
    CHECK ((account = 'SERVING') = (model <> ''))
);
CREATE INDEX ledger_pool ON ledger (pool, sequence);

CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME;
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger
    FOR EACH STATEMENT EXECUTE FUNCTION append_only();

-- The account SERVING, model by model.
CREATE TABLE bookings (
    pool   text NOT NULL,
    model  text NOT NULL,
    flavor text NOT NULL,
    region text NOT NULL,
    units  bigint NOT NULL CHECK (units >= 0),
    PRIMARY KEY (pool, model, flavor, region)
);

CREATE TABLE reservations (
    name            text PRIMARY KEY,
    sequence        bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    uid             uuid NOT NULL DEFAULT gen_random_uuid(),
    pool            text NOT NULL,
    launch          text NOT NULL,
    state           text NOT NULL CHECK (state IN ('PENDING', 'HELD', 'SETTLED', 'EXPIRED', 'CANCELLED')),
    replaced_models text[] NOT NULL,
    expire_time     timestamptz NOT NULL,
    activate_time   timestamptz,
    outcome         text CHECK (outcome IN ('SUCCEEDED', 'ROLLED_BACK')),
    retain_duration interval NOT NULL DEFAULT interval '0',
    -- Unset once what was retained is free.
    retain_until    timestamptz,
    create_time     timestamptz NOT NULL DEFAULT now(),
    update_time     timestamptz NOT NULL DEFAULT now(),
    CHECK ((state = 'SETTLED') = (outcome IS NOT NULL)),
    CHECK (retain_until IS NULL OR outcome = 'SUCCEEDED'),
    CHECK (activate_time IS NULL OR state IN ('HELD', 'SETTLED'))
);
CREATE UNIQUE INDEX reservations_live ON reservations (launch) WHERE state IN ('PENDING', 'HELD');
CREATE INDEX reservations_launch ON reservations (launch, sequence);
CREATE INDEX reservations_pool ON reservations (pool, sequence);
CREATE INDEX reservations_expiring ON reservations (expire_time) WHERE state = 'HELD' AND activate_time IS NULL;
CREATE INDEX reservations_retaining ON reservations (retain_until) WHERE retain_until IS NOT NULL;

CREATE TABLE reservation_items (
    reservation    text NOT NULL REFERENCES reservations,
    position       integer NOT NULL,
    flavor         text NOT NULL,
    region         text NOT NULL,
    hold_units     bigint NOT NULL CHECK (hold_units >= 0),
    moved_units    bigint NOT NULL CHECK (moved_units BETWEEN 0 AND hold_units),
    retained_units bigint NOT NULL DEFAULT 0 CHECK (retained_units BETWEEN 0 AND hold_units),
    PRIMARY KEY (reservation, position),
    UNIQUE (reservation, flavor, region)
);

CREATE TABLE reservation_models (
    reservation text NOT NULL REFERENCES reservations,
    kind        text NOT NULL CHECK (kind IN ('MOVED', 'SETTLED')),
    position    integer NOT NULL,
    model       text NOT NULL,
    flavor      text NOT NULL,
    region      text NOT NULL,
    units       bigint NOT NULL CHECK (units >= 0),
    PRIMARY KEY (reservation, kind, position),
    UNIQUE (reservation, kind, model, flavor, region)
);

CREATE TABLE certificates (
    name        text PRIMARY KEY,
    sequence    bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    model       text NOT NULL,
    flavor      text NOT NULL,
    max_qps     double precision NOT NULL CHECK (max_qps > 0),
    confidence  double precision NOT NULL CHECK (confidence BETWEEN 0 AND 1),
    source      text NOT NULL CHECK (source IN ('STATED', 'LOAD_TEST', 'INFERRED')),
    load_test   text CHECK ((load_test IS NOT NULL) = (source = 'LOAD_TEST')),
    note        text NOT NULL,
    actor       text NOT NULL,
    create_time timestamptz NOT NULL,
    expire_time timestamptz NOT NULL CHECK (expire_time > create_time)
);
CREATE INDEX certificates_model ON certificates (model, sequence);

-- As it was answered: an estimate never changes.
CREATE TABLE estimates (
    name     text PRIMARY KEY,
    sequence bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    model    text NOT NULL,
    answer   bytea NOT NULL
);
CREATE INDEX estimates_model ON estimates (model, sequence);

-- Epochs of load tests, one increasing sequence.
CREATE SEQUENCE fence;

CREATE TABLE load_tests (
    name                   text PRIMARY KEY,
    sequence               bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    model                  text NOT NULL,
    region                 text NOT NULL,
    flavor                 text NOT NULL,
    sample_requests        bytea[] NOT NULL,
    latency_p99_ms         double precision NOT NULL CHECK (latency_p99_ms >= 0),
    error_rate             double precision NOT NULL CHECK (error_rate >= 0 AND error_rate < 1),
    start_qps              double precision NOT NULL CHECK (start_qps > 0),
    certification_requests bigint NOT NULL CHECK (certification_requests > 0),
    state                  text NOT NULL DEFAULT 'PENDING' CHECK (state IN
                           ('PENDING', 'STARTING', 'SEARCHING', 'CERTIFYING', 'SUCCEEDED', 'FAILED', 'CANCELLED')),
    message                text NOT NULL DEFAULT '',
    probes                 jsonb NOT NULL DEFAULT '[]',
    certificate            text REFERENCES certificates CHECK ((certificate IS NOT NULL) = (state = 'SUCCEEDED')),
    actor                  text NOT NULL,
    create_time            timestamptz NOT NULL DEFAULT now(),
    end_time               timestamptz CHECK ((end_time IS NOT NULL) = (state IN ('SUCCEEDED', 'FAILED', 'CANCELLED'))),
    version                bigint NOT NULL DEFAULT 1,
    attempt                integer NOT NULL DEFAULT 0,
    -- Whether the region's agent may run a clone: set before the first is asked for, unset once none is left.
    clone_present          boolean NOT NULL DEFAULT false,
    epoch                  bigint NOT NULL DEFAULT 0,
    lease_holder           text,
    lease_expire_time      timestamptz
);
CREATE INDEX load_tests_model ON load_tests (model, sequence);
CREATE INDEX load_tests_open ON load_tests (sequence)
    WHERE clone_present OR state NOT IN ('SUCCEEDED', 'FAILED', 'CANCELLED');
"""


def upgrade() -> None:
    op.execute(idempotency.TABLE)
    op.execute(SQL)
