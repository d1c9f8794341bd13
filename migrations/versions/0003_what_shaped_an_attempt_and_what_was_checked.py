"""What shaped an attempt, what was checked of it, and what a server does not tell"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NULLABLE = (
    ("sample", "drafted", sa.Integer()),
    ("sample", "accepted", sa.Integer()),
    ("model_file", "size_bytes", sa.BigInteger()),
    ("model_file", "parameter_count", sa.BigInteger()),
)
ADDED = (
    ("attempt", sa.Column("provenance", sa.JSON(), nullable=True)),
    ("attempt", sa.Column("conditions", sa.String(length=64), nullable=True)),
    ("attempt", sa.Column("checks", sa.JSON(), nullable=True)),
    ("sample", sa.Column("control_token", sa.Integer(), nullable=True)),
)


def upgrade() -> None:
    _set_nullable(True)
    for table, column in ADDED:
        op.add_column(table, column)


def downgrade() -> None:
    for table, column in reversed(ADDED):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_column(column.name)
    # Rows that use the new freedom can't go back; the database refuses them.
    _set_nullable(False)


def _set_nullable(nullable: bool) -> None:
    for table, name, kind in NULLABLE:
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.alter_column(name, existing_type=kind, nullable=nullable)
