"""A standby that lags: what it has of a database takes that one's place, and gives its ids out again."""

from collections.abc import Sequence

from sqlalchemy import Engine, RowMapping, insert, select, text

from app.gallery.tables import Base, ChangeRow, FollowerRow, GalleryRow, SubjectRow, TemplateRow

_TABLES = [
    Base.metadata.tables[row.__tablename__] for row in (GalleryRow, SubjectRow, TemplateRow, ChangeRow, FollowerRow)
]
_COUNTED = ("gallery", "subject", "template")


class Standby:
    """The rows and the counters of a database as they are now."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._rows: list[Sequence[RowMapping]] = []
        with engine.connect() as connection:
            for table in _TABLES:
                self._rows.append(connection.execute(select(table)).mappings().all())
            self._counters = {name: connection.scalar(text(self._counter(name))) for name in _COUNTED}

    def promote(self) -> None:
        """Undo whatever has been committed since."""
        with self._engine.begin() as connection:
            connection.execute(text("DELETE FROM gallery"))  # with all that is in them
            for table, rows in zip(_TABLES, self._rows, strict=True):
                if rows:
                    connection.execute(insert(table), [dict(row) for row in rows])
            for name, value in self._counters.items():
                statement = f"SELECT setval('{name}_id_seq', coalesce(:value, 1), :value IS NOT NULL)"
                if self._engine.dialect.name == "sqlite":
                    statement = f"UPDATE sqlite_sequence SET seq = coalesce(:value, 0) WHERE name = '{name}'"
                connection.execute(text(statement), {"value": value})

    def _counter(self, name: str) -> str:
        if self._engine.dialect.name == "sqlite":
            return f"SELECT seq FROM sqlite_sequence WHERE name = '{name}'"
        return f"SELECT CASE WHEN is_called THEN last_value END FROM {name}_id_seq"
