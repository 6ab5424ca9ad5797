"""What is sampled, and statistics that producers made themselves."""

from alembic import op

revision = "0003"
down_revision = "0002"

SQL = """
-- BAD_STATISTICS and NOT_SAMPLED.
ALTER TABLE rejections DROP CONSTRAINT rejections_reason_check;
ALTER TABLE rejections ADD CONSTRAINT rejections_reason_check CHECK (reason BETWEEN 1 AND 9);
"""


def upgrade() -> None:
    op.execute(SQL)
