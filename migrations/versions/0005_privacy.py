"""Keys of subjects, consent and retention; what erases a subject has its key destroyed.

Going up, templates stay as they are until the service starts, which seals them. Going down opens them, for which the
vault and its master key are needed; the keys are destroyed afterwards.
"""

import sqlalchemy as sa
from alembic import context, op

from app.gallery.encryption import Flaw, RowIdentity, SealedRow, SealedRows
from app.gallery.errors import TemplateTampered
from app.gallery.vault import Vault

revision = "0005"
down_revision = "0001"
branch_labels = None
depends_on = None

_TRIGGER = "subject_key_to_destroy"
_MANY = 1000


def upgrade() -> None:
    op.add_column("gallery", sa.Column("privacy", sa.JSON(), nullable=True))
    op.add_column("subject", sa.Column("key_id", sa.String(32), nullable=True))
    op.add_column("subject", sa.Column("consent", sa.JSON(), nullable=True))
    op.add_column("subject", sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("subject", sa.Column("seen_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_subject_key_id", "subject", ["key_id"], unique=True)
    op.create_table(
        "key_to_destroy",
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("destroyed", sa.Boolean(), nullable=False, server_default=sa.text("false")),
    )
    # A trigger, so that no way of erasing a subject, a cascade included, can leave its key behind.
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            f"CREATE TRIGGER {_TRIGGER} AFTER DELETE ON subject WHEN OLD.key_id IS NOT NULL "
            "BEGIN INSERT OR IGNORE INTO key_to_destroy (key_id) VALUES (OLD.key_id); END"
        )
        return
    op.execute(
        f"CREATE FUNCTION {_TRIGGER}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO key_to_destroy (key_id) VALUES (OLD.key_id) ON CONFLICT DO NOTHING; RETURN OLD; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {_TRIGGER} AFTER DELETE ON subject FOR EACH ROW WHEN (OLD.key_id IS NOT NULL) "
        f"EXECUTE FUNCTION {_TRIGGER}()"
    )


def downgrade() -> None:
    if context.get_revision_argument() is not None:  # else every table goes
        _open_templates(op.get_bind())
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"DROP TRIGGER {_TRIGGER}")
    else:
        op.execute(f"DROP TRIGGER {_TRIGGER} ON subject")
        op.execute(f"DROP FUNCTION {_TRIGGER}()")
    op.drop_table("key_to_destroy")
    op.drop_index("ix_subject_key_id", "subject")
    for column in ("seen_at", "expires_at", "consent", "key_id"):
        op.drop_column("subject", column)
    op.drop_column("gallery", "privacy")


def _open_templates(connection: sa.Connection) -> None:
    """Store the templates as they were before; without their keys they would be lost."""
    template = sa.table("template", *map(sa.column, ("id", "gallery_id", "subject_id", "crop_sha256", "embedding")))
    subject = sa.table("subject", *map(sa.column, ("id", "key_id")))
    query = (
        sa.select(template, subject.c.key_id)
        .join(subject, subject.c.id == template.c.subject_id)
        .where(subject.c.key_id.is_not(None))
        .order_by(template.c.id)
        .limit(_MANY)
    )
    vault: Vault | None = None
    after = 0
    while rows := connection.execute(query.where(template.c.id > after)).all():
        vault = vault or _vault()
        sealed = [
            SealedRow(
                row.key_id, RowIdentity("template", row.gallery_id, row.subject_id, row.crop_sha256), row.embedding
            )
            for row in rows
        ]
        for row, value in zip(rows, SealedRows(vault).open(sealed), strict=True):
            if isinstance(value, Flaw):
                raise TemplateTampered(f"template {row.id} does not open ({value}); erase it, then go down again")
            connection.execute(sa.update(template).where(template.c.id == row.id).values(embedding=value))
        after = rows[-1].id


def _vault() -> Vault:
    handed: Vault | None = context.config.attributes.get("vault")
    if handed is not None:
        return handed
    from app.settings import Settings
    from app.vault import vault_of  # the settings' own

    return vault_of(Settings(), expected=True)
