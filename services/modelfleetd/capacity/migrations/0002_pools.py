"""Borrowing and lending between pools; loans; usage over time; how far the ledger was checked."""

from alembic import op

revision = "0002"
down_revision = "0001"

SQL = """
-- --- borrowing and lending ---

ALTER TABLE balances
    -- Of the pool, and beside its numbers: who locks the row knows whose other row counts.
    ADD COLUMN parent                text,
    -- Whether the pool has a quota here; else the row is there for what is still used, or for its children.
    ADD COLUMN is_stated             boolean NOT NULL DEFAULT true,
    ADD COLUMN borrowing_limit_units bigint CHECK (borrowing_limit_units >= 0),
    ADD COLUMN lending_limit_units   bigint CHECK (lending_limit_units >= 0),
    -- Of held_units, what will go on serving once the launches have succeeded.
    ADD COLUMN ending_units          bigint NOT NULL DEFAULT 0,
    -- Of loans in force, to it and by it.
    ADD COLUMN loaned_units          bigint NOT NULL DEFAULT 0 CHECK (loaned_units >= 0),
    ADD COLUMN lent_units            bigint NOT NULL DEFAULT 0 CHECK (lent_units >= 0),
    -- Sums over the rows of its children: an admission costs as much with a thousand siblings as with one.
    ADD COLUMN children_stored_units bigint NOT NULL DEFAULT 0 CHECK (children_stored_units >= 0),
    ADD COLUMN children_used_units   bigint NOT NULL DEFAULT 0 CHECK (children_used_units >= 0),
    ADD COLUMN used_units            bigint NOT NULL
        GENERATED ALWAYS AS (serving_units + held_units + retained_units) STORED,
    -- What a child keeps to itself of what it owns; it stores the rest in its parent.
    ADD COLUMN local_units           bigint NOT NULL
        GENERATED ALWAYS AS (greatest(0, nominal_units - lending_limit_units)) STORED;

UPDATE balances b SET parent = p.parent FROM pools p WHERE p.name = b.pool AND p.parent IS NOT NULL;
INSERT INTO balances (pool, flavor, region, nominal_units, ceiling_units, is_stated, borrowing_limit_units)
    SELECT DISTINCT parent, flavor, region, 0, 0, false, 0 FROM balances WHERE parent IS NOT NULL
    ON CONFLICT DO NOTHING;
ALTER TABLE balances DROP CONSTRAINT never_oversold;
UPDATE balances p SET children_stored_units = stored, children_used_units = used FROM (
    SELECT parent, flavor, region, sum(nominal_units - local_units) AS stored,
        sum(greatest(0, used_units - local_units)) AS used
    FROM balances WHERE parent IS NOT NULL GROUP BY parent, flavor, region
) c WHERE p.pool = c.parent AND p.flavor = c.flavor AND p.region = c.region;

ALTER TABLE balances
    -- The most that may be used by right: what there is and may be borrowed. NULL: only the parent bounds it.
    ADD COLUMN limit_units bigint GENERATED ALWAYS AS (
        CASE WHEN parent IS NULL THEN nominal_units + children_stored_units
        ELSE nominal_units + borrowing_limit_units END) STORED,
    ALTER COLUMN ceiling_units DROP NOT NULL;
UPDATE balances SET ceiling_units =
    CASE WHEN limit_units IS NOT NULL THEN greatest(limit_units, used_units + children_used_units) END;
-- ceiling_units is limit_units, or what was used when that was cut below it. Only a cut raises it above the limit, and
-- it falls with every release. An organisation's row counts what its children use of what they store in it.
ALTER TABLE balances
    ADD CONSTRAINT never_oversold
        CHECK (serving_units + held_units + retained_units + children_used_units <= ceiling_units),
    ADD CONSTRAINT ceiling CHECK ((ceiling_units IS NULL) = (limit_units IS NULL) AND ceiling_units >= limit_units),
    ADD CONSTRAINT two_levels CHECK (parent IS NULL OR (children_stored_units = 0 AND children_used_units = 0)),
    ADD CONSTRAINT ending CHECK (ending_units BETWEEN 0 AND held_units),
    ADD CONSTRAINT balances_parent_fkey FOREIGN KEY (parent, flavor, region) REFERENCES balances;
CREATE INDEX balances_parent ON balances (parent, flavor, region) WHERE parent IS NOT NULL;
CREATE INDEX reservations_held ON reservations (pool) WHERE state = 'HELD';
CREATE INDEX bookings_place ON bookings (pool, flavor, region);

ALTER TABLE ledger ADD COLUMN end_delta_units bigint NOT NULL DEFAULT 0
    CHECK (account = 'HELD' OR end_delta_units = 0);
-- Holds of before end as large as they are.
UPDATE balances SET ending_units = held_units;
ALTER TABLE ledger DISABLE TRIGGER append_only;
UPDATE ledger SET end_delta_units = delta_units WHERE account = 'HELD';
ALTER TABLE ledger ENABLE TRIGGER append_only;
-- By place: all lines of a place are written under the lock of its balance, so their order is that of their commits.
CREATE INDEX ledger_place ON ledger (pool, flavor, region, sequence);

-- --- loans ---

CREATE TABLE loans (
    name        text PRIMARY KEY,
    sequence    bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    lender      text NOT NULL,
    borrower    text NOT NULL CHECK (borrower <> lender),
    flavor      text NOT NULL,
    region      text NOT NULL,
    units       bigint NOT NULL CHECK (units > 0),
    reason      text NOT NULL,
    state       text NOT NULL DEFAULT 'ACTIVE' CHECK (state IN ('ACTIVE', 'EXPIRED', 'ENDED')),
    actor       text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    expire_time timestamptz NOT NULL,
    end_time    timestamptz CHECK ((end_time IS NOT NULL) = (state = 'ENDED'))
);
CREATE INDEX loans_lender ON loans (lender, sequence);
CREATE INDEX loans_borrower ON loans (borrower, sequence);
CREATE INDEX loans_expiring ON loans (expire_time) WHERE state = 'ACTIVE';
CREATE INDEX loans_active_lender ON loans (lender, sequence) WHERE state = 'ACTIVE';
CREATE INDEX loans_active_borrower ON loans (borrower, sequence) WHERE state = 'ACTIVE';

-- --- usage over time ---

-- One row for each step in which a place changed: the most of it, and how it ended.
CREATE TABLE usage_points (
    seconds             integer NOT NULL CHECK (seconds IN (60, 300, 3600, 86400)),
    pool                text NOT NULL,
    flavor              text NOT NULL,
    region              text NOT NULL,
    time                timestamptz NOT NULL,
    most_serving_units  bigint NOT NULL,
    most_held_units     bigint NOT NULL,
    most_retained_units bigint NOT NULL,
    most_used_units     bigint NOT NULL,
    nominal_units       bigint NOT NULL,
    serving_units       bigint NOT NULL,
    held_units          bigint NOT NULL,
    retained_units      bigint NOT NULL,
    PRIMARY KEY (seconds, pool, flavor, region, time)
) WITH (fillfactor = 70);
CREATE INDEX usage_points_time ON usage_points (seconds, time);
INSERT INTO usage_points
    SELECT 60, pool, flavor, region, date_bin('1 minute', now(), 'epoch'),
        serving_units, held_units, retained_units, used_units, nominal_units, serving_units, held_units, retained_units
    FROM balances;

-- --- how far the ledger was checked ---

-- Sums of the lines of a place up to a sequence number that were found to be its balance.
CREATE TABLE checkpoints (
    pool           text NOT NULL,
    flavor         text NOT NULL,
    region         text NOT NULL,
    sequence       bigint NOT NULL,
    serving_units  bigint NOT NULL,
    held_units     bigint NOT NULL,
    retained_units bigint NOT NULL,
    ending_units   bigint NOT NULL,
    check_time     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pool, flavor, region)
);

-- When the whole of it is to be added up again, by whichever replica is there.
CREATE TABLE whole_checks (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    due_time timestamptz NOT NULL
);
"""


def upgrade() -> None:
    op.execute(SQL)
