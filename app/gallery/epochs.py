"""What is told to indexes when a database was set back."""

from sqlalchemy import Engine, select, text

from app.gallery.rows import Sessions, gallery_row, record_changes
from app.gallery.tables import GalleryRow

_EPOCH = 2**32  # revisions that a restore skips: more than any process can have seen of the time that was undone
_SKIPPED_GALLERIES = 1_000_000  # ids of galleries that a restore skips, for the same reason


def begin_epoch(engine: Engine) -> int:
    """Tell every process and every snapshot of an index that the database was set back; answers the galleries.

    A database that was restored repeats revisions and ids that were given out before, for other content. So each
    gallery's revision leaps past all that can have been seen, with a change that has indexes built anew, and so
    do the ids that new galleries get.
    """
    with Sessions(engine).writing() as session:
        names = session.scalars(select(GalleryRow.name).order_by(GalleryRow.id)).all()
        for name in names:
            owner = gallery_row(session, name, lock=True)
            owner.revision += _EPOCH
            record_changes(session, owner, "rebuild", [(0, 0)])
        if engine.dialect.name == "sqlite":
            statement = "UPDATE sqlite_sequence SET seq = seq + :skipped WHERE name = 'gallery'"
        else:
            sequence = "pg_get_serial_sequence('gallery', 'id')"
            statement = f"SELECT setval({sequence}, nextval({sequence}) + :skipped)"
        session.execute(text(statement), {"skipped": _SKIPPED_GALLERIES})
        return len(names)
