"""What an engine does not report is NULL"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

COLUMNS = (
    ("draft_prompt_ms", sa.Double()),
    ("draft_ms", sa.Double()),
    ("verify_ms", sa.Double()),
    ("rounds", sa.Integer()),
    ("peak_rss_bytes", sa.BigInteger()),
)


def upgrade() -> None:
    _set_nullable(True)


def downgrade() -> None:
    # Rows that use the new freedom can't go back; the database refuses them.
    _set_nullable(False)


def _set_nullable(nullable: bool) -> None:
    with op.batch_alter_table("sample", schema=None) as batch_op:
        for name, kind in COLUMNS:
            batch_op.alter_column(name, existing_type=kind, nullable=nullable)
