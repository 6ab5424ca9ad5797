"""What people are told: the outbox, a row for each receiver."""

from alembic import op

revision = "0005"
down_revision = "0004"

SCHEMA = r"""
CREATE TABLE notifications (
    number            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    launch            text NOT NULL REFERENCES launches,
    kind              text NOT NULL CHECK (kind IN (
                          'SUCCEEDED', 'ROLLED_BACK', 'CANCELLED', 'FAILED', 'ROLLING_BACK', 'PAUSED',
                          'AWAITING_APPROVAL', 'NEEDS_ATTENTION')),
    -- Whose pause, which alarm.
    about             text NOT NULL,
    page              boolean NOT NULL,
    receiver          text NOT NULL,
    key               text NOT NULL,
    message           text NOT NULL,
    -- What webhooks are sent, and by which labels Alertmanager knows it.
    body              jsonb NOT NULL,
    labels            jsonb NOT NULL,
    state             text NOT NULL DEFAULT 'PENDING' CHECK (state IN ('PENDING', 'DELIVERED', 'ABANDONED')),
    attempts          integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    last_error        text NOT NULL DEFAULT '',
    create_time       timestamptz NOT NULL,
    deliver_time      timestamptz,
    -- Also the lease of whoever delivers it now: until then nobody else does.
    next_attempt_time timestamptz DEFAULT now(),
    -- Until when an alert of it lasts; empty: as long as what it tells of.
    end_time          timestamptz,
    -- When Alertmanager has last got something new to hear of it.
    change_time       timestamptz NOT NULL DEFAULT now(),
    UNIQUE (receiver, key),
    CONSTRAINT delivered CHECK ((deliver_time IS NOT NULL) = (state = 'DELIVERED')),
    CONSTRAINT due_while_pending CHECK ((next_attempt_time IS NOT NULL) = (state = 'PENDING'))
);
CREATE INDEX notifications_due ON notifications (receiver, next_attempt_time) WHERE state = 'PENDING';
CREATE INDEX notifications_pending ON notifications (number) WHERE state = 'PENDING';
CREATE INDEX notifications_of_launch ON notifications (launch, number);
CREATE INDEX notifications_old ON notifications (create_time);
CREATE INDEX alerts_changed ON notifications (change_time) WHERE receiver = 'alertmanager';
CREATE INDEX alerts_lasting ON notifications (number) WHERE receiver = 'alertmanager' AND end_time IS NULL;
CREATE INDEX alerts_ending ON notifications (end_time) WHERE receiver = 'alertmanager' AND end_time IS NOT NULL;
"""


def upgrade() -> None:
    op.execute(SCHEMA)
