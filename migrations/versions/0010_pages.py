"""Indexes by which a page of subjects, and the keys that are still to be destroyed, are found without the others."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_subject_gallery_id", "subject", ["gallery_id", "id"])
    left = sa.column("destroyed").is_(sa.false())
    op.create_index("ix_key_to_destroy_left", "key_to_destroy", ["key_id"], sqlite_where=left, postgresql_where=left)


def downgrade() -> None:
    op.drop_index("ix_key_to_destroy_left", "key_to_destroy")
    op.drop_index("ix_subject_gallery_id", "subject")
