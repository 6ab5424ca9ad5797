"""What people are told: the outbox."""

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    pass
