"""Load tests from recordings, with causes, and what certificates rest on."""

from alembic import op

revision = "0004"
down_revision = "0003"

SQL = """
ALTER TABLE load_tests
    -- Percentiles beside latency_p99_ms: [{"percentile": …, "latency_ms": …}].
    ADD COLUMN latencies          jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN recording          text,
    ADD COLUMN recording_digest   text NOT NULL DEFAULT '',
    ADD COLUMN warm_up_duration   interval CHECK (warm_up_duration > interval '0'),
    ADD COLUMN validity_duration  interval NOT NULL DEFAULT interval '90 days',
    ADD COLUMN cause              text CHECK (cause IN ('UNSTABLE_LATENCY', 'GENERATOR_LIMIT', 'UNRELATED_ERRORS',
                                  'NOTHING_WITHIN', 'NOTHING_BEYOND', 'CLONE_UNAVAILABLE', 'INTERRUPTED', 'OUT_OF_TIME',
                                  'RECORDING_UNREADABLE')),
    ADD COLUMN current_qps        double precision NOT NULL DEFAULT 0 CHECK (current_qps >= 0),
    ADD COLUMN highest_within_qps double precision NOT NULL DEFAULT 0 CHECK (highest_within_qps >= 0),
    ADD COLUMN lowest_beyond_qps  double precision NOT NULL DEFAULT 0 CHECK (lowest_beyond_qps >= 0),
    ADD COLUMN start_time         timestamptz,
    ADD COLUMN expected_end_time  timestamptz,
    -- Load tests that failed before causes were recorded have none.
    ADD CONSTRAINT cause_of_failure CHECK (cause IS NULL OR state = 'FAILED'),
    ADD CONSTRAINT nothing_tried_after_the_end
        CHECK (end_time IS NULL OR (current_qps = 0 AND expected_end_time IS NULL)),
    ADD CONSTRAINT samples_or_recording CHECK (recording IS NULL OR cardinality(sample_requests) = 0);
-- What is replayed now cannot be deleted.
CREATE INDEX load_tests_recording ON load_tests (recording) WHERE recording IS NOT NULL AND end_time IS NULL;
-- Samples are of no use after the end.
UPDATE load_tests SET sample_requests = '{}' WHERE end_time IS NOT NULL;
ALTER TABLE load_tests ADD CONSTRAINT something_to_replay
    CHECK (end_time IS NOT NULL OR recording IS NOT NULL OR cardinality(sample_requests) > 0);

-- Of each probe its whole distribution, which lists do not read.
CREATE TABLE load_test_histograms (
    load_test text NOT NULL REFERENCES load_tests,
    number    integer NOT NULL CHECK (number > 0),
    histogram bytea NOT NULL,
    PRIMARY KEY (load_test, number)
);

ALTER TABLE certificates
    ADD COLUMN region              text,
    ADD COLUMN stoppers            jsonb,
    ADD COLUMN recording           text,
    ADD COLUMN recording_digest    text NOT NULL DEFAULT '',
    ADD COLUMN generator_health    jsonb,
    ADD COLUMN requests            bigint NOT NULL DEFAULT 0 CHECK (requests >= 0),
    ADD COLUMN serving_spec_digest text NOT NULL DEFAULT '';
"""


def upgrade() -> None:
    op.execute(SQL)
