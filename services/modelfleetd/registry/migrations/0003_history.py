"""Where history begins: what was forgotten, and what is still needed of it."""

from alembic import op

revision = "0003"
down_revision = "0002"

SQL = """
CREATE TABLE base (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    number   bigint NOT NULL DEFAULT 0 CHECK (number >= 0),
    hash     bytea NOT NULL DEFAULT '' CHECK (number = 0 OR length(hash) = 32),
    time     timestamptz CHECK (number = 0 OR time IS NOT NULL),
    digest   bytea NOT NULL DEFAULT '' CHECK (number = 0 OR length(digest) = 32)
);
INSERT INTO base DEFAULT VALUES;
COMMENT ON TABLE base IS 'What the oldest revision that is kept follows; a digest of the changes kept of before';

-- When revisions are forgotten, the newest change of each resource before stays, and resources that have not changed
-- since keep the number of a revision that is gone. That nothing else lacks its revision is what the chain is for.
ALTER TABLE changes DROP CONSTRAINT changes_revision_fkey;
ALTER TABLE resources DROP CONSTRAINT resources_revision_fkey;
"""


def upgrade() -> None:
    op.execute(SQL)
