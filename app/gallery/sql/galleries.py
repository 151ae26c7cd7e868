"""Galleries in SQL: made, changed and measured; the caller has the transaction and keeps the journal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Select, exists, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.gallery.consent import rules_from_json
from app.gallery.points import Point, new_mark
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


class _Templates(NamedTuple):
    """Templates of a gallery, and subjects with one, as of a point: neither changes without a new one."""

    point: Point
    templates: int
    enrolled: int


class GallerySizes:
    """Measures galleries, and counts the templates of each once for a point: of ten million that takes seconds."""

    def __init__(self) -> None:
        self._known: dict[int, _Templates] = {}

    def measure(self, session: Session, gallery_ids: Sequence[int]) -> dict[int, GallerySize]:
        """Subjects and templates of some galleries by ids, and subjects with a template; only of those there are."""
        sizes: dict[int, GallerySize] = {}
        for asked in in_parts(gallery_ids):
            points, known = _points(session, asked), dict(self._known)
            counts = {one: known[one] for one, point in points.items() if one in known and known[one].point == point}
            if anew := points.keys() - counts.keys():
                counts |= _count_templates(session, {one: points[one] for one in anew})
            subjects = _counted(session, _count_of(SubjectRow).where(SubjectRow.gallery_id.in_(asked)))
            # Asked last: one erased before this is left out, and one erased behind it was counted whole.
            there = _points(session, asked)
            for one in counts.keys() & there.keys():
                sizes[one] = GallerySize(subjects.get(one, 0), counts[one].templates, counts[one].enrolled)
                if there[one] == counts[one].point:  # nobody wrote while they were counted
                    self._known[one] = counts[one]
            for gone in set(asked) - there.keys():
                self._known.pop(gone, None)
        return sizes


def _points(session: Session, gallery_ids: Sequence[int]) -> dict[int, Point]:
    query = select(GalleryRow.id, GalleryRow.revision, GalleryRow.mark)
    found = session.execute(query.where(GalleryRow.id.in_(gallery_ids), is_there()))
    return {one: Point(revision, mark) for one, revision, mark in found}


def _count_templates(session: Session, points: Mapping[int, Point]) -> dict[int, _Templates]:
    templates = _counted(session, _count_of(TemplateRow).where(TemplateRow.gallery_id.in_(points)))
    with_one = exists().where(TemplateRow.subject_id == SubjectRow.id)
    enrolled = _counted(session, _count_of(SubjectRow).where(SubjectRow.gallery_id.in_(points), with_one))
    return {one: _Templates(point, templates.get(one, 0), enrolled.get(one, 0)) for one, point in points.items()}


def _count_of(table: type[SubjectRow] | type[TemplateRow]) -> Select[int, int]:
    return select(table.gallery_id, func.count()).group_by(table.gallery_id)


def _counted(session: Session, statement: Select[int, int]) -> dict[int, int]:
    return dict(session.execute(statement).all())
