"""Statistics by minute, 5 min and hour in partitions; bins; how labels are delayed."""

from alembic import op

revision = "0002"
down_revision = "0001"

_EXPOSURE = """
    seen   bigint NOT NULL CHECK (seen >= 0),
    n      bigint NOT NULL CHECK (n >= 0),
    w      numeric NOT NULL,
    w2     numeric NOT NULL,
    wp     numeric NOT NULL,
    w2pq   numeric NOT NULL,
    wl     numeric NOT NULL,
    w2l    numeric NOT NULL,
    w2l2   numeric NOT NULL
"""
_POSITIVES = """
    n      bigint NOT NULL CHECK (n > 0),
    w      numeric NOT NULL,
    w2     numeric NOT NULL,
    w2l1   numeric NOT NULL,
    wl     numeric NOT NULL,
    w2l    numeric NOT NULL,
    w2l2   numeric NOT NULL
"""
_TOTALS = """
    rejected  bigint NOT NULL CHECK (rejected >= 0),
    malformed bigint NOT NULL CHECK (malformed >= 0),
    p_n    bigint NOT NULL CHECK (p_n >= 0),
    p_w    numeric NOT NULL,
    p_w2   numeric NOT NULL,
    p_w2l1 numeric NOT NULL,
    p_wl   numeric NOT NULL,
    p_w2l  numeric NOT NULL,
    p_w2l2 numeric NOT NULL
"""

SQL = f"""
ALTER TABLE exposure RENAME TO old_exposure;
ALTER TABLE positives RENAME TO old_positives;
ALTER TABLE rejections RENAME TO old_rejections;
ALTER INDEX exposure_pkey RENAME TO old_exposure_pkey;
ALTER INDEX positives_pkey RENAME TO old_positives_pkey;
ALTER INDEX rejections_pkey RENAME TO old_rejections_pkey;

-- These tables are cut into partitions by time, which are made ahead and dropped as a whole once they are older than
-- what is kept: see store/partitions.py. `minute` is the first of the row's span.

-- Examples, as if every label were negative. seen: predictions, those included that do not count without a label.
CREATE TABLE exposure (
    series integer NOT NULL,
    minute integer NOT NULL,
    known  boolean NOT NULL,
    {_EXPOSURE},
    PRIMARY KEY (series, minute, known)
) PARTITION BY RANGE (minute);

-- What positives change, by the age of the label: a bucket, half an octave wide.
CREATE TABLE positives (
    series integer NOT NULL,
    minute integer NOT NULL,
    known  boolean NOT NULL,
    age    smallint NOT NULL CHECK (age BETWEEN 0 AND 63),
    {_POSITIVES},
    PRIMARY KEY (series, minute, known, age)
) PARTITION BY RANGE (minute);

-- Rows that were not taken.
CREATE TABLE rejections (
    series integer NOT NULL,
    minute integer NOT NULL,
    reason smallint NOT NULL CHECK (reason BETWEEN 1 AND 63),
    n      bigint NOT NULL CHECK (n > 0),
    PRIMARY KEY (series, minute, reason)
) PARTITION BY RANGE (minute);

-- The same by 5 minutes and by hour: the exposure, the positives whatever their age (p_), the rows that were not taken
-- and of these the ones that cannot be right, unlike repeated ones and what came too late.
-- Every write adds to all widths at once, so that rows by hour hold what comes when its minute is not kept any more.
CREATE TABLE totals_5min (
    series integer NOT NULL,
    minute integer NOT NULL CHECK (minute % 5 = 0),
    known  boolean NOT NULL,
    {_EXPOSURE},
    {_TOTALS},
    PRIMARY KEY (series, minute, known)
) PARTITION BY RANGE (minute);

CREATE TABLE totals_hour (
    series integer NOT NULL REFERENCES series,
    minute integer NOT NULL CHECK (minute % 60 = 0),
    known  boolean NOT NULL,
    {_EXPOSURE},
    {_TOTALS},
    PRIMARY KEY (series, minute, known)
) PARTITION BY RANGE (minute);

-- Positives by age and hour: what delays are learned from.
CREATE TABLE positives_hour (
    series integer NOT NULL,
    minute integer NOT NULL CHECK (minute % 60 = 0),
    known  boolean NOT NULL,
    age    smallint NOT NULL CHECK (age BETWEEN 0 AND 63),
    {_POSITIVES},
    PRIMARY KEY (series, minute, known, age)
) PARTITION BY RANGE (minute);

-- Examples by hour and bin of their log-odds.
CREATE TABLE bins (
    series integer NOT NULL,
    minute integer NOT NULL CHECK (minute % 60 = 0),
    bin    smallint NOT NULL CHECK (bin BETWEEN 0 AND 31),
    w      numeric NOT NULL,
    wp     numeric NOT NULL,
    wy     numeric NOT NULL,
    PRIMARY KEY (series, minute, bin)
) PARTITION BY RANGE (minute);

-- How labels are delayed: matured positives by bucket of their labels' age, the newer ones counting more. The subject
-- is a model, or a model type with all its models. Learned from all hours before learned_until, counted in minutes.
CREATE TABLE delays (
    subject       text NOT NULL,
    prediction    text NOT NULL,
    learned_until integer NOT NULL,
    positives     double precision NOT NULL,
    weights       double precision[] NOT NULL,
    PRIMARY KEY (subject, prediction)
);

-- What is there moves into partitions for it: by minute as long as minutes are kept, and summed up into the wider rows.
-- Bins cannot be made of sums: those of old hours stay empty.
DO $$
DECLARE
    today integer := extract(epoch FROM now()) / 60;
    part  record;
BEGIN
    FOR part IN
        SELECT kept.name, start, start + kept.days * 1440 AS stop FROM (VALUES
            ('exposure', 1, today - 8 * 1440), ('positives', 1, today - 8 * 1440), ('rejections', 4, today - 8 * 1440),
            ('totals_5min', 7, today - 35 * 1440), ('totals_hour', 28, 0), ('positives_hour', 14, today - 42 * 1440)
        ) AS kept (name, days, oldest)
        CROSS JOIN LATERAL (
            SELECT DISTINCT minute / (kept.days * 1440) * (kept.days * 1440) AS start FROM (
                SELECT minute FROM old_exposure UNION ALL SELECT minute FROM old_positives
                UNION ALL SELECT minute FROM old_rejections
            ) AS minutes WHERE minute >= kept.oldest
        ) AS starts
    LOOP
        EXECUTE format(
            'CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%s) TO (%s) WITH (fillfactor = 70)',
            part.name || '_' || to_char(to_timestamp(part.start * 60.0) AT TIME ZONE 'UTC', 'YYYYMMDD'),
            part.name, part.start, part.stop
        );
    END LOOP;

    INSERT INTO exposure SELECT series, minute, known, n, n, w, w2, wp, w2pq, wl, w2l, w2l2 FROM old_exposure
    WHERE minute >= today - 8 * 1440;
    INSERT INTO positives SELECT * FROM old_positives WHERE minute >= today - 8 * 1440;
    INSERT INTO positives_hour
    SELECT series, minute / 60 * 60, known, age, sum(n), sum(w), sum(w2), sum(w2l1), sum(wl), sum(w2l), sum(w2l2)
    FROM old_positives WHERE minute >= today - 42 * 1440 GROUP BY 1, 2, 3, 4;
    INSERT INTO rejections SELECT * FROM old_rejections WHERE minute >= today - 8 * 1440;

    CREATE TEMPORARY TABLE old_totals ON COMMIT DROP AS
    SELECT series, minute, known, n AS seen, n, w, w2, wp, w2pq, wl, w2l, w2l2, 0::bigint AS rejected,
           0::bigint AS malformed,
           0::bigint AS p_n, 0::numeric AS p_w, 0::numeric AS p_w2, 0::numeric AS p_w2l1, 0::numeric AS p_wl,
           0::numeric AS p_w2l, 0::numeric AS p_w2l2
    FROM old_exposure
    UNION ALL
    SELECT series, minute, known, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n, w, w2, w2l1, wl, w2l, w2l2 FROM old_positives
    UNION ALL
    SELECT series, minute, false, 0, 0, 0, 0, 0, 0, 0, 0, 0, n, CASE WHEN reason IN (5, 6) THEN 0 ELSE n END,
           0, 0, 0, 0, 0, 0, 0
    FROM old_rejections;
    FOR part IN SELECT * FROM (VALUES ('totals_5min', 5, today - 35 * 1440), ('totals_hour', 60, 0))
        AS kept (name, width, oldest)
    LOOP
        EXECUTE format(
            'INSERT INTO %I SELECT series, minute / %s * %s, known, sum(seen), sum(n), sum(w), sum(w2), sum(wp), '
            'sum(w2pq), sum(wl), sum(w2l), sum(w2l2), sum(rejected), sum(malformed), sum(p_n), sum(p_w), sum(p_w2), '
            'sum(p_w2l1), sum(p_wl), sum(p_w2l), sum(p_w2l2) FROM old_totals WHERE minute >= %s GROUP BY 1, 2, 3',
            part.name, part.width, part.width, part.oldest
        );
    END LOOP;
END $$;

DROP TABLE old_exposure, old_positives, old_rejections;
"""


def upgrade() -> None:
    op.execute(SQL)
