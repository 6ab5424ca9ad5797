"""Recordings of live traffic."""

from alembic import op

revision = "0005"
down_revision = "0004"

SQL = """
CREATE TABLE recordings (
    name               text PRIMARY KEY,
    sequence           bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    model_type         text NOT NULL,
    region             text CHECK (region IS NOT NULL OR source = 'CLIENT'),
    source             text NOT NULL CHECK (source IN ('TAP', 'CLIENT')),
    sample_permille    integer NOT NULL CHECK (sample_permille BETWEEN 1 AND 1000),
    max_bytes          bigint NOT NULL CHECK (max_bytes > 0),
    max_requests       bigint NOT NULL CHECK (max_requests >= 0),
    max_duration       interval NOT NULL CHECK (max_duration > interval '0'),
    retention_duration interval NOT NULL CHECK (retention_duration > interval '0'),
    path               text NOT NULL CHECK ((path <> '') = (source = 'CLIENT')),
    -- Two recordings never share a dataset: each deletes its own.
    uri                text NOT NULL UNIQUE,
    state              text NOT NULL DEFAULT 'PENDING' CHECK (state IN ('PENDING', 'RECORDING', 'READY', 'FAILED')),
    message            text NOT NULL DEFAULT '',
    requests           bigint NOT NULL DEFAULT 0 CHECK (requests >= 0),
    bytes              bigint NOT NULL DEFAULT 0 CHECK (bytes >= 0),
    dropped_requests   bigint NOT NULL DEFAULT 0 CHECK (dropped_requests >= 0),
    digest             text NOT NULL DEFAULT '' CHECK ((digest <> '') = (state = 'READY')),
    actor              text NOT NULL,
    create_time        timestamptz NOT NULL DEFAULT now(),
    first_request_time timestamptz,
    last_request_time  timestamptz,
    end_time           timestamptz CHECK ((end_time IS NOT NULL) = (state IN ('READY', 'FAILED'))),
    expire_time        timestamptz NOT NULL,
    -- Who asked for its end before its limits, and whether it is to go: its row goes after its dataset.
    stopped_by         text NOT NULL DEFAULT '',
    deleted            boolean NOT NULL DEFAULT false CHECK (NOT deleted OR state IN ('READY', 'FAILED')),
    -- When somebody has to look at it next, and how often somebody began to: only the last one may write.
    look_time          timestamptz NOT NULL DEFAULT now(),
    claim              bigint NOT NULL DEFAULT 0
);
CREATE INDEX recordings_model_type ON recordings (model_type, sequence);
CREATE INDEX recordings_open ON recordings (look_time) WHERE deleted OR state IN ('PENDING', 'RECORDING');
CREATE INDEX recordings_expiring ON recordings (expire_time) WHERE NOT deleted AND state IN ('READY', 'FAILED');
"""


def upgrade() -> None:
    op.execute(SQL)
