"""Which erasure a gallery's snapshots have still to follow, and the keys of subjects that were merged into others.

Going up, every gallery's snapshots are written anew once, as nobody knows what they still have to follow. Going down,
the keys of merged subjects are to be destroyed, as before; a sweep does that, unless the way leads past 0005.
"""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_TRIGGER = "inherited_key_to_destroy"


def upgrade() -> None:
    op.add_column("gallery", sa.Column("erasure", sa.String(32), nullable=True))
    gallery = sa.table("gallery", sa.column("erasure", sa.String))
    op.execute(gallery.update().values(erasure=uuid.uuid4().hex))
    op.create_table(
        "inherited_key",
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column(
            "subject_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            sa.ForeignKey("subject.id", ondelete="CASCADE"),
            nullable=False,
            index=True,
        ),
    )
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            f"CREATE TRIGGER {_TRIGGER} AFTER DELETE ON inherited_key "
            "BEGIN INSERT OR IGNORE INTO key_to_destroy (key_id) VALUES (OLD.key_id); END"
        )
        return
    op.execute(  # the function of the trigger on subjects does for these, too
        f"CREATE TRIGGER {_TRIGGER} AFTER DELETE ON inherited_key FOR EACH ROW "
        "EXECUTE FUNCTION subject_key_to_destroy()"
    )


def downgrade() -> None:
    op.execute("DELETE FROM inherited_key")
    on = "" if op.get_bind().dialect.name == "sqlite" else " ON inherited_key"
    op.execute(f"DROP TRIGGER {_TRIGGER}{on}")
    op.drop_table("inherited_key")
    op.drop_column("gallery", "erasure")
