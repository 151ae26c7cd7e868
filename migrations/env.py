"""Alembic's entry: runs the scripts on the connection that it is handed, or on the settings' database."""

from alembic import context
from sqlalchemy import Connection

import app.access.tables  # noqa: F401  maps its tables on the same base
from app.gallery.sql.database import open_engine
from app.gallery.tables import Base
from app.settings import Settings


def run(connection: Connection) -> None:
    context.configure(
        connection=connection, target_metadata=Base.metadata, render_as_batch=True, transaction_per_migration=True
    )
    with context.begin_transaction():
        context.run_migrations()


handed: Connection | None = context.config.attributes.get("connection")
if handed is not None:
    run(handed)
else:
    settings = Settings()
    with open_engine(settings.sqlalchemy_url, timeout=settings.database_timeout).connect() as opened:
        run(opened)
        opened.commit()
