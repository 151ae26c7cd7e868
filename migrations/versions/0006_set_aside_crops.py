"""Crops of templates that were set aside, and what engines outside the process keep of erased galleries.

Going down, the crops of templates that are set aside are lost: the older tables have no place for them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("set_aside_template", sa.Column("crop", sa.LargeBinary(), nullable=True))
    op.create_table(
        "storage_to_drop",
        sa.Column("prefix", sa.String(60), primary_key=True),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("storage_to_drop")
    op.drop_column("set_aside_template", "crop")
