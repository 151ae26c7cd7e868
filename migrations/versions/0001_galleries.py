"""Galleries, subjects, templates and their history."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "gallery",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("name", sa.String(200), nullable=False, unique=True),
        sa.Column("extractor", sa.String(200), nullable=False),
        sa.Column("dimension", sa.Integer(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("policy", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "subject",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("gallery_id", _ID, sa.ForeignKey("gallery.id", ondelete="CASCADE"), nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("gallery_id", "key"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "template",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("gallery_id", _ID, sa.ForeignKey("gallery.id", ondelete="CASCADE"), nullable=False),
        sa.Column("subject_id", _ID, sa.ForeignKey("subject.id", ondelete="CASCADE"), nullable=False),
        sa.Column("embedding", sa.LargeBinary(), nullable=False),
        sa.Column("detection_score", sa.Float(), nullable=False),
        sa.Column("face_size", sa.Float(), nullable=False),
        sa.Column("sharpness", sa.Float(), nullable=False),
        sa.Column("pose", sa.JSON(), nullable=False),
        sa.Column("crop_sha256", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("subject_id", "crop_sha256"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_template_gallery_id", "template", ["gallery_id", "id"])
    op.create_table(
        "change",
        sa.Column("gallery_id", _ID, sa.ForeignKey("gallery.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("revision", sa.BigInteger(), primary_key=True),
        sa.Column("template_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("subject_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(10), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("change")
    op.drop_index("ix_template_gallery_id", "template")
    op.drop_table("template")
    op.drop_table("subject")
    op.drop_table("gallery")
