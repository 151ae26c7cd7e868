"""Galleries in SQL: made, changed and measured; the caller has the transaction and keeps the journal."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Select, exists, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.gallery.consent import rules_from_json
from app.gallery.points import new_mark
from app.gallery.policy import ThresholdPolicy, policy_to_json
from app.gallery.records import Gallery, GalleryChanges, GallerySize
from app.gallery.sql.erased_galleries import is_there
from app.gallery.sql.rows import gallery_of, in_parts
from app.gallery.tables import GalleryRow, SubjectRow, TemplateRow, now


def insert_gallery(session: Session, name: str, extractor: str, dimension: int, policy: ThresholdPolicy | None) -> bool:
    """Insert the gallery unless it is there; two first uses at the same moment make one gallery.

    Returns:
        Whether it was inserted.
    """
    values = {
        "name": name,
        "extractor": extractor,
        "dimension": dimension,
        "revision": 0,
        "mark": new_mark(),
        "policy": None if policy is None else policy_to_json(policy),
        "created_at": now(),
    }
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    statement = insert(GalleryRow).values(values).on_conflict_do_nothing(index_elements=["name"])
    return session.scalar(statement.returning(GalleryRow.id)) is not None


def change_gallery(row: GalleryRow, changes: GalleryChanges) -> dict[str, Any]:
    """Set what the changes name in a gallery's row, which is locked; answers what the journal tells of it."""
    told: dict[str, Any] = {}
    if "policy" in changes:
        policy = changes["policy"]
        row.policy = told["policy"] = None if policy is None else policy_to_json(policy)
    if rules := {name: value for name, value in changes.items() if name != "policy"}:
        row.privacy = rules_from_json(row.privacy).to_json() | rules
        told |= row.privacy
    return told


def all_galleries(session: Session) -> list[Gallery]:
    """Those that are there, by id."""
    return [gallery_of(row) for row in session.scalars(select(GalleryRow).where(is_there()).order_by(GalleryRow.id))]


def gallery_with(session: Session, gallery_id: int) -> Gallery | None:
    """The gallery with that id; None where it is gone."""
    row = session.scalar(select(GalleryRow).where(GalleryRow.id == gallery_id, is_there()))
    return None if row is None else gallery_of(row)


def find_galleries(
    session: Session, shown: Callable[[str], bool], *, after: str, limit: int
) -> tuple[list[Gallery], str | None]:
    """Galleries by name, from the one behind `after`, and the name of the last where there are more.

    Names alone are read of those that are not on the page.

    Args:
        session: of any transaction.
        shown: whether the gallery with that name is one of them.
        after: a name; need not be there.
        limit: at most so many.
    """
    # Sorted here: a database orders names by rules of its own, and a cursor has to be compared by the same.
    rest = sorted(
        name for name in session.scalars(select(GalleryRow.name).where(is_there())) if name > after and shown(name)
    )
    page, found = rest[:limit], list[Gallery]()
    for asked in in_parts(page):
        found += map(gallery_of, session.scalars(select(GalleryRow).where(GalleryRow.name.in_(asked))))
    return sorted(found, key=lambda one: one.name), page[-1] if len(rest) > limit else None


def measure_galleries(session: Session, gallery_ids: Sequence[int]) -> dict[int, GallerySize]:
    """Subjects and templates of some galleries by their ids, and subjects with a template; only of those there are."""
    subjects = select(SubjectRow.gallery_id, func.count()).group_by(SubjectRow.gallery_id)
    templates = select(TemplateRow.gallery_id, func.count()).group_by(TemplateRow.gallery_id)
    enrolled = subjects.where(exists().where(TemplateRow.subject_id == SubjectRow.id))
    sizes: dict[int, GallerySize] = {}
    for asked in in_parts(gallery_ids):
        counted = (
            _counted(session, subjects.where(SubjectRow.gallery_id.in_(asked))),
            _counted(session, templates.where(TemplateRow.gallery_id.in_(asked))),
            _counted(session, enrolled.where(SubjectRow.gallery_id.in_(asked))),
        )
        # Asked last: one erased before this is left out, and one erased behind it was counted whole.
        there = session.scalars(select(GalleryRow.id).where(GalleryRow.id.in_(asked), is_there()))
        sizes |= {one: GallerySize(*(counts.get(one, 0) for counts in counted)) for one in there}
    return sizes


def _counted(session: Session, statement: Select[int, int]) -> dict[int, int]:
    return dict(session.execute(statement).all())
