"""What each minute counted as, and what is known of each model now."""

from alembic import op

revision = "0004"
down_revision = "0003"

SQL = """
-- What the minutes of an hour counted as, a byte each: 0 not evaluated, 1 good, 2 bad, 3 unknown. A byte that is not 0
-- is never changed. Hours since 1970-01-01 UTC. Objective 1 is stability, 3 availability; coverage follows from 1.
CREATE TABLE slices (
    slo       text COLLATE "C" NOT NULL,
    objective smallint NOT NULL CHECK (objective IN (1, 3)),
    hour      integer NOT NULL,
    minutes   bytea NOT NULL CHECK (length(minutes) = 60),
    PRIMARY KEY (slo, objective, hour)
) WITH (fillfactor = 50);
-- Each minute changes rows of one hour, and none of their indexed columns, so that the room in their page suffices.
CREATE INDEX slices_hour ON slices (hour);

-- Who evaluates, and how far that has come. One row: whoever evaluates locks it in the transaction that writes.
CREATE TABLE evaluation (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    holder      text NOT NULL DEFAULT '',
    -- Grows whenever the lease passes to another holder: one that was stopped meanwhile writes nothing any more.
    fence       bigint NOT NULL DEFAULT 0,
    expire_time timestamptz NOT NULL DEFAULT '-infinity',
    -- The newest minute that was evaluated.
    minute      integer,
    -- The registry's revision that it was evaluated by.
    revision    bigint NOT NULL DEFAULT 0
);
INSERT INTO evaluation DEFAULT VALUES;

-- What the newest evaluation said of each model. `minute` is the one at which the row last changed.
CREATE TABLE standings (
    model    text COLLATE "C" PRIMARY KEY,
    minute   integer NOT NULL,
    standing jsonb NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX standings_minute ON standings (minute);
"""


def upgrade() -> None:
    op.execute(SQL)
