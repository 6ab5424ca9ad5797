"""What the figures of many launches are made of."""

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    pass
