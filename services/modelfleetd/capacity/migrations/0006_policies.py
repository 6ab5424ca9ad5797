"""Launch policies and their decisions."""

from alembic import op

revision = "0006"
down_revision = "0005"

SQL = """
-- An estimate asks what all pools have booked for a model. Units are left out, so that changing them touches no index.
CREATE INDEX bookings_model ON bookings (model);

CREATE TABLE launch_policies (
    name                    text PRIMARY KEY,
    uid                     uuid NOT NULL DEFAULT gen_random_uuid(),
    team                    text NOT NULL,
    description             text NOT NULL,
    team_default            boolean NOT NULL,
    rule                    text NOT NULL CHECK (rule IN ('FREE_WITHIN_QUOTA', 'NO_REGRESSION', 'GAIN_AGAINST_COST')),
    -- FREE_WITHIN_QUOTA.
    max_cost_ratio          double precision CHECK (max_cost_ratio > 0),
    -- NO_REGRESSION.
    tolerance_basis_points  integer CHECK (tolerance_basis_points >= 0),
    -- GAIN_AGAINST_COST.
    metric                  text,
    min_gain_per_doubling   double precision CHECK (min_gain_per_doubling > 0),
    max_loss                double precision CHECK (max_loss BETWEEN 0 AND 1),
    max_evidence_age        interval,
    -- Side by side.
    approver_roles          text[] NOT NULL,
    approver_teams          text[] NOT NULL,
    rollback_window         interval,
    warm_share_basis_points integer NOT NULL CHECK (warm_share_basis_points BETWEEN 0 AND 10000),
    version                 bigint NOT NULL DEFAULT 1,
    create_time             timestamptz NOT NULL DEFAULT now(),
    update_time             timestamptz NOT NULL DEFAULT now(),
    CHECK (cardinality(approver_roles) = cardinality(approver_teams)),
    CHECK (max_cost_ratio IS NULL OR rule = 'FREE_WITHIN_QUOTA'),
    CHECK ((tolerance_basis_points IS NOT NULL) = (rule = 'NO_REGRESSION')),
    CHECK ((metric IS NOT NULL) = (rule = 'GAIN_AGAINST_COST')),
    CHECK ((min_gain_per_doubling IS NOT NULL) = (rule = 'GAIN_AGAINST_COST')),
    CHECK ((max_loss IS NOT NULL) = (rule = 'GAIN_AGAINST_COST')),
    CHECK (max_evidence_age IS NULL OR rule = 'GAIN_AGAINST_COST')
);
CREATE UNIQUE INDEX launch_policies_default ON launch_policies (team) WHERE team_default;
CREATE INDEX launch_policies_team ON launch_policies (team, name);

-- As it was answered, the policy included: whatever becomes of that, a decision never changes.
CREATE TABLE launch_decisions (
    name      text PRIMARY KEY,
    sequence  bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    candidate text NOT NULL,
    launch    text NOT NULL,
    answer    bytea NOT NULL
);
CREATE INDEX launch_decisions_candidate ON launch_decisions (candidate, sequence);
CREATE INDEX launch_decisions_launch ON launch_decisions (launch, sequence);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON launch_decisions
    FOR EACH STATEMENT EXECUTE FUNCTION append_only();
"""


def upgrade() -> None:
    op.execute(SQL)
