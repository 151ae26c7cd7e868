"""Keys of subjects, consent and retention; what erases a subject has its key destroyed.

Going up, what is kept stays as it is until the service starts, which seals it. Going down opens it, for which the
vault and its master key are needed; the keys stay there, and nothing lists any more which were to be destroyed.
"""

from typing import Any, Literal

import sqlalchemy as sa
from alembic import context, op

from app.gallery.errors import TemplateTampered
from app.gallery.sealing.encryption import Flaw, RowIdentity, SealedRow, SealedRows
from app.gallery.sealing.vault import Vault

revision = "0005"
down_revision = "0004"
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
    """Store templates, crops and other embeddings as they were before; without their keys they would be lost."""
    owned = "gallery_id", "subject_id", "crop_sha256"
    subject = sa.table("subject", *map(sa.column, ("id", "key_id")))
    template = sa.table("template", *map(sa.column, ("id", *owned, "embedding")))
    aside = sa.table("set_aside_template", *map(sa.column, ("id", *owned, "embedding")))
    spare = sa.table("spare_embedding", *map(sa.column, ("template_id", "extractor", "embedding")))
    crop = sa.table("crop", *map(sa.column, ("template_id", "image")))
    beside = (template.c.gallery_id, template.c.subject_id, template.c.crop_sha256)
    _open_column(connection, subject, template, "embedding", sa.select(template))
    _open_column(connection, subject, aside, "embedding", sa.select(aside))
    for table, column in ((spare, "embedding"), (crop, "image")):
        query = sa.select(table, *beside).join(template, template.c.id == table.c.template_id)
        _open_column(connection, subject, table, column, query)


def _open_column(
    connection: sa.Connection, subject: sa.TableClause, table: sa.TableClause, column: str, query: sa.Select[Any]
) -> None:
    names = [one.name for one in table.c if one.name in {"id", "template_id", "extractor"}]
    keys = [table.c[name] for name in names]
    owner = sa.literal_column("template.subject_id") if "subject_id" not in table.c else table.c.subject_id
    query = query.add_columns(subject.c.key_id).join(subject, subject.c.id == owner)
    query = query.where(subject.c.key_id.is_not(None)).order_by(*keys).limit(_MANY)
    vault: Vault | None = None
    after: tuple[Any, ...] | None = None
    while True:
        page = query if after is None else query.where(sa.tuple_(*keys) > sa.tuple_(*map(sa.literal, after)))
        rows = connection.execute(page).all()
        if not rows:
            return
        vault = vault or _vault()
        kind: Literal["template", "crop"] = "crop" if column == "image" else "template"
        sealed = [
            SealedRow(
                row.key_id, RowIdentity(kind, row.gallery_id, row.subject_id, row.crop_sha256), getattr(row, column)
            )
            for row in rows
        ]
        for row, value in zip(rows, SealedRows(vault).open(sealed), strict=True):
            if isinstance(value, Flaw):
                raise TemplateTampered(
                    f"the {column} of {table.name} {row[0]} does not open ({value}); erase it, then go down again"
                )
            here = sa.and_(*(key == getattr(row, key.name) for key in keys))
            connection.execute(sa.update(table).where(here).values({column: value}))
        after = tuple(getattr(rows[-1], name) for name in names)


def _vault() -> Vault:
    handed: Vault | None = context.config.attributes.get("vault")
    if handed is not None:
        return handed
    from app.settings import Settings
    from app.vault import vault_of  # the settings' own

    return vault_of(Settings(), expected=True)
