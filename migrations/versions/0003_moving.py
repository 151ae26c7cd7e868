"""Kept crops, the journal of imports, and embeddings of other extractors."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "crop",
        sa.Column("template_id", _ID, _of("template"), primary_key=True, autoincrement=False),
        sa.Column("image", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "imported_photo",
        sa.Column("template_id", _ID, _of("template"), primary_key=True, autoincrement=False),
        sa.Column("photo_sha256", sa.String(64), primary_key=True),
    )
    op.create_index("ix_imported_photo_photo_sha256", "imported_photo", ["photo_sha256"])
    op.create_table(
        "spare_embedding",
        sa.Column("template_id", _ID, _of("template"), primary_key=True, autoincrement=False),
        sa.Column("extractor", sa.String(200), primary_key=True),
        sa.Column("gallery_id", _ID, _of("gallery"), nullable=False),
        sa.Column("previous", sa.Boolean(), nullable=False),
        sa.Column("embedding", sa.LargeBinary(), nullable=False),
    )
    op.create_index("ix_spare_embedding_gallery_id", "spare_embedding", ["gallery_id", "extractor"])
    op.create_table(
        "set_aside_template",
        sa.Column("id", _ID, primary_key=True, autoincrement=False),
        sa.Column("gallery_id", _ID, _of("gallery"), nullable=False),
        sa.Column("subject_id", _ID, _of("subject"), nullable=False),
        sa.Column("extractor", sa.String(200), nullable=False),
        sa.Column("embedding", sa.LargeBinary(), nullable=False),
        sa.Column("detection_score", sa.Float(), nullable=False),
        sa.Column("face_size", sa.Float(), nullable=False),
        sa.Column("sharpness", sa.Float(), nullable=False),
        sa.Column("pose", sa.JSON(), nullable=False),
        sa.Column("crop_sha256", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_set_aside_template_gallery_id", "set_aside_template", ["gallery_id"])
    op.create_index("ix_set_aside_template_subject_id", "set_aside_template", ["subject_id"])


def downgrade() -> None:
    for table in ("set_aside_template", "spare_embedding", "imported_photo", "crop"):
        op.drop_table(table)


def _of(table: str) -> sa.ForeignKey:
    return sa.ForeignKey(f"{table}.id", ondelete="CASCADE")
