"""More kinds of resources: assets, schemas, naming schemes, requests for tiers, evidence."""

from alembic import op

revision = "0002"
down_revision = "0001"

SQL = """
ALTER TABLE resources DROP CONSTRAINT resources_kind_check;
ALTER TABLE resources ADD CONSTRAINT resources_kind_check CHECK (kind IN (
    'team', 'region', 'model_type', 'model', 'asset', 'extension_schema', 'naming_scheme', 'criticality_request',
    'evaluation_report', 'risk_assessment'
));
"""


def upgrade() -> None:
    op.execute(SQL)
