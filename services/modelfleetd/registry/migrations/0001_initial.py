"""The ledger: its head, its history as a chain of hashes, the current state, and what is kept beside it."""

from alembic import op

from modelfleetd.kit import idempotency

revision = "0001"
down_revision = None

SQL = """
-- One row, which every write locks first: so the order of revisions is the order of commits.
CREATE TABLE head (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    number   bigint NOT NULL DEFAULT 0 CHECK (number >= 0),
    time     timestamptz NOT NULL DEFAULT '-infinity',
    hash     bytea NOT NULL DEFAULT ''
);
INSERT INTO head DEFAULT VALUES;
COMMENT ON TABLE head IS 'The newest revision; locked first by every write';

-- What is hashed is stored byte for byte as it was hashed: header here, changes below.
CREATE TABLE revisions (
    number        bigint PRIMARY KEY CHECK (number > 0),
    time          timestamptz NOT NULL,
    header        bytea NOT NULL,
    previous_hash bytea NOT NULL CHECK (number = 1 OR length(previous_hash) = 32),
    hash          bytea NOT NULL CHECK (length(hash) = 32)
);
CREATE INDEX revisions_time ON revisions (time);
COMMENT ON TABLE revisions IS 'History: a registry.v1.Revision without its changes, and its place in the chain';

CREATE TABLE changes (
    revision bigint NOT NULL REFERENCES revisions,
    position int NOT NULL CHECK (position >= 0),
    resource text COLLATE "C" NOT NULL,
    change   bytea NOT NULL,
    PRIMARY KEY (revision, position)
);
CREATE INDEX changes_resource ON changes (resource, revision);
COMMENT ON TABLE changes IS 'History: a registry.v1.ResourceChange each, in the order of its revision';

CREATE TABLE resources (
    name     text COLLATE "C" PRIMARY KEY,
    kind     text NOT NULL CHECK (kind IN ('team', 'region', 'model_type', 'model')),
    revision bigint NOT NULL REFERENCES revisions,
    state    bytea NOT NULL
);
COMMENT ON TABLE resources IS 'Current state: the message of that kind, as the newest of its changes left it';

-- For ever: a launch that has ended cannot end otherwise.
CREATE TABLE launch_outcomes (
    launch      text COLLATE "C" PRIMARY KEY,
    outcome     text NOT NULL CHECK (outcome IN ('SUCCEEDED', 'ROLLED_BACK')),
    digest      bytea NOT NULL,
    response    bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE launch_outcomes IS 'How each launch ended, with the answer that is given again when it is repeated';

CREATE TABLE serving_status (
    model_type   text COLLATE "C" NOT NULL,
    region       text COLLATE "C" NOT NULL,
    observe_time timestamptz NOT NULL,
    status       bytea NOT NULL,
    PRIMARY KEY (model_type, region)
);
COMMENT ON TABLE serving_status IS 'Beside the ledger: the newest registry.v1.ServingStatus of each route';

CREATE INDEX requests_create_time ON requests (create_time);
"""


def upgrade() -> None:
    op.execute(idempotency.TABLE)
    op.execute(SQL)
