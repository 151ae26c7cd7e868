"""Marks that tell revisions of one number apart, when a database has given the number out again.

Everything that is there has the mark 0, and so have snapshots and positions of engines from before: they stay in use.
A process of the version before may write on beside; what it writes has the mark 0 as well, and indexes that find it
behind another mark are loaded anew.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_COLUMNS = (("gallery", "mark"), ("change", "mark"), ("change", "previous"))


def upgrade() -> None:
    for table, column in _COLUMNS:
        op.add_column(table, sa.Column(column, sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    for table, column in reversed(_COLUMNS):
        op.drop_column(table, column)
