"""A launch that went back may be attempted again: each attempt ends for itself."""

from alembic import op

revision = "0004"
down_revision = "0003"

SQL = """
ALTER TABLE launch_outcomes ADD COLUMN attempt integer NOT NULL DEFAULT 1 CHECK (attempt >= 1);
ALTER TABLE launch_outcomes DROP CONSTRAINT launch_outcomes_pkey;
ALTER TABLE launch_outcomes ADD PRIMARY KEY (launch, attempt);
COMMENT ON TABLE launch_outcomes IS
    'How each attempt of a launch ended, with the answer that is given again when it is repeated';
"""


def upgrade() -> None:
    op.execute(SQL)
