"""First."""

from alembic import op

from modelfleetd.kit import idempotency

revision = "0001"
down_revision = None

SQL = """
CREATE TABLE things (name text PRIMARY KEY, data jsonb, note text DEFAULT '100 %');
CREATE INDEX ON things ((data ->> 'a'));
INSERT INTO things (name, data) VALUES ('it''s; fine', '{"a": 1}'::jsonb);
"""


def upgrade() -> None:
    op.execute(idempotency.TABLE)
    op.execute(SQL)
