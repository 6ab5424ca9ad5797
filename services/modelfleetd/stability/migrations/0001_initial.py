"""Batches, statistics by minute, and predictions and labels that wait for each other."""

from alembic import op

revision = "0001"
down_revision = None

SQL = """
-- Every batch that was written, so that a repeated one changes nothing. Forgotten after a week.
CREATE TABLE batches (
    model_type    text NOT NULL,
    producer      text NOT NULL,
    sequence      bigint NOT NULL CHECK (sequence > 0),
    digest        bytea NOT NULL,
    accepted_rows bigint CHECK (accepted_rows >= 0),
    rejected      jsonb,
    create_time   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_type, producer, sequence)
);
CREATE INDEX batches_create_time ON batches (create_time);

-- A model's prediction, as a number: the rows below are many and narrow.
CREATE TABLE series (
    id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model      text NOT NULL,
    prediction text NOT NULL,
    UNIQUE (model, prediction)
);

-- Minutes are counted from 1970-01-01 UTC. Sums are integers in units of 2^-40; rows only ever grow.
-- known: the labels were known when the examples were written; else they come until the attribution window has passed.

-- Examples, as if every label were negative.
CREATE TABLE exposure (
    series integer NOT NULL REFERENCES series,
    minute integer NOT NULL,
    known  boolean NOT NULL,
    n      bigint NOT NULL CHECK (n > 0),
    w      numeric NOT NULL,
    w2     numeric NOT NULL,
    wp     numeric NOT NULL,
    w2pq   numeric NOT NULL,
    wl     numeric NOT NULL,
    w2l    numeric NOT NULL,
    w2l2   numeric NOT NULL,
    PRIMARY KEY (series, minute, known)
) WITH (fillfactor = 70);

-- What positives change, by the age of the label: a bucket, half an octave wide.
CREATE TABLE positives (
    series integer NOT NULL REFERENCES series,
    minute integer NOT NULL,
    known  boolean NOT NULL,
    age    smallint NOT NULL CHECK (age BETWEEN 0 AND 63),
    n      bigint NOT NULL CHECK (n > 0),
    w      numeric NOT NULL,
    w2     numeric NOT NULL,
    w2l1   numeric NOT NULL,
    wl     numeric NOT NULL,
    w2l    numeric NOT NULL,
    w2l2   numeric NOT NULL,
    PRIMARY KEY (series, minute, known, age)
) WITH (fillfactor = 70);

-- Rows that were not taken.
CREATE TABLE rejections (
    series integer NOT NULL REFERENCES series,
    minute integer NOT NULL,
    reason smallint NOT NULL CHECK (reason BETWEEN 1 AND 7),
    n      bigint NOT NULL CHECK (n > 0),
    PRIMARY KEY (series, minute, reason)
) WITH (fillfactor = 70);

-- What waits for its counterpart lies on shelves: partitions that are dropped once all on them has expired. Made when
-- first needed. Request ids are cut into two halves. label: -1 none yet, 0 negative, 1 positive. Times in microseconds.
CREATE TABLE waiting_predictions (
    shelf    integer NOT NULL,
    series   integer NOT NULL,
    high     bigint NOT NULL,
    low      bigint NOT NULL,
    event    bigint NOT NULL,
    value    double precision NOT NULL,
    is_logit boolean NOT NULL,
    weight   double precision NOT NULL,
    label    smallint NOT NULL CHECK (label BETWEEN -1 AND 1),
    PRIMARY KEY (high, low, series, shelf)
) PARTITION BY LIST (shelf);

CREATE TABLE waiting_labels (
    shelf  integer NOT NULL,
    series integer NOT NULL,
    high   bigint NOT NULL,
    low    bigint NOT NULL,
    time   bigint NOT NULL,
    label  smallint NOT NULL CHECK (label BETWEEN 0 AND 1),
    PRIMARY KEY (high, low, series, shelf)
) PARTITION BY LIST (shelf);
"""


def upgrade() -> None:
    op.execute(SQL)
