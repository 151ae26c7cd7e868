"""Who owns which template, kept in memory beside an index."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_NONE = np.empty(0, np.int64)
UNKNOWN = -1
_MANY = 65_536


class TemplateOwners:
    """Template ids and subject ids, found either way; one thread writes while others read.

    Most of them stand in sorted arrays, 28 bytes a template, which never change; what came and went since stands in
    dictionaries, until `folded` makes new arrays of both.

    Args:
        template_ids, subject_ids: pairs of shape (N,), int64, in any order.
    """

    def __init__(self, template_ids: NDArray[np.int64] = _NONE, subject_ids: NDArray[np.int64] = _NONE) -> None:
        if np.any(np.diff(template_ids) <= 0):
            order = np.argsort(template_ids, kind="stable")
            template_ids, subject_ids = template_ids[order], subject_ids[order]
        self._ids, self._subjects = template_ids, subject_ids
        self._order = np.argsort(subject_ids, kind="stable").astype(np.uint32)
        self._sorted_subjects = subject_ids[self._order]
        self._gone: set[int] = set()
        self._touched: set[int] | None = None  # templates that came, went or moved since `begin_folding`
        self._new_subject_of: dict[int, int] = {}
        # Tuples that are replaced, not lists that change: a reader beside the writer has the old one or the new one.
        self._new_templates_of: dict[int, tuple[int, ...]] = {}
        self._count = int(np.count_nonzero(np.diff(self._sorted_subjects))) + bool(len(subject_ids))

    def __len__(self) -> int:
        """Number of templates."""
        return len(self._ids) - len(self._gone) + len(self._new_subject_of)

    @property
    def subjects(self) -> int:
        """Number of subjects that have a template."""
        return self._count

    @property
    def unfolded(self) -> int:
        """How much came and went since the arrays were made."""
        return len(self._new_subject_of) + len(self._gone)

    @property
    def wants_folding(self) -> bool:
        """Whether so much came and went that new arrays are due."""
        return self.unfolded > _MANY

    def subject_of(self, template_id: int) -> int | None:
        """The subject of a template, or None where it is not known."""
        row = self._row(template_id)  # first, see `move`
        found = self._new_subject_of.get(template_id)
        if found is not None:
            return found
        return None if row is None else int(self._subjects[row])

    def subjects_of(self, template_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The subjects (N,) of templates (N,), -1 where one is not known."""
        if len(self._ids):
            rows = np.searchsorted(self._ids, template_ids)
            rows[rows == len(self._ids)] = 0
            found = np.where(self._ids[rows] == template_ids, self._subjects[rows], UNKNOWN)
        else:
            found = np.full(len(template_ids), UNKNOWN, np.int64)
        if self._gone or self._new_subject_of:
            for place, template_id in enumerate(template_ids.tolist()):
                gone = template_id in self._gone  # first, see `move`
                new = self._new_subject_of.get(template_id)
                if new is not None:
                    found[place] = new
                elif gone:
                    found[place] = UNKNOWN
        return found

    def templates_of(self, subject_id: int) -> tuple[int, ...]:
        """The templates of a subject in the order of their ids, then as they came; empty where it has none."""
        first, last = np.searchsorted(self._sorted_subjects, (subject_id, subject_id + 1))
        stored = self._ids[self._order[first:last]].tolist()
        if self._gone:
            stored = [template_id for template_id in stored if template_id not in self._gone]
        return (*stored, *self._new_templates_of.get(subject_id, ()))

    def add(self, owned: Iterable[tuple[int, int]]) -> None:
        """Add pairs of template and subject; a template that is there already changes nothing."""
        pairs, added = dict[int, int](), dict[int, list[int]]()
        for template_id, subject_id in owned:
            pairs.setdefault(template_id, subject_id)
        known = self.subjects_of(np.array(list(pairs), np.int64)).tolist()
        for (template_id, subject_id), before in zip(pairs.items(), known, strict=True):
            if before == UNKNOWN:
                self._touch(template_id)
                self._new_subject_of[template_id] = subject_id
                added.setdefault(subject_id, []).append(template_id)
        for subject_id, template_ids in added.items():
            self._count += not self.templates_of(subject_id)
            self._new_templates_of[subject_id] = (*self._new_templates_of.get(subject_id, ()), *template_ids)

    def move(self, owned: Iterable[tuple[int, int]]) -> None:
        """Give templates to other subjects: who reads meanwhile finds the old or the new one, never neither.

        A template that is not there is added.
        """
        moved = [
            (template_id, before, now) for template_id, now in owned if (before := self.subject_of(template_id)) != now
        ]
        subjects = {one for _, before, now in moved for one in (before, now) if one is not None}
        had = sum(bool(self.templates_of(one)) for one in subjects)
        came: dict[int, list[int]] = {}
        for template_id, _, now in moved:
            self._touch(template_id)
            self._new_subject_of[template_id] = now  # before it leaves the arrays: readers look there first
            came.setdefault(now, []).append(template_id)
        for subject_id, template_ids in came.items():
            self._new_templates_of[subject_id] = (*self._new_templates_of.get(subject_id, ()), *template_ids)
        left: dict[int, set[int]] = {}
        for template_id, before, _ in moved:
            if before is not None:
                left.setdefault(before, set()).add(template_id)
        for subject_id, gone in left.items():
            new = self._new_templates_of.get(subject_id, ())
            self._gone |= gone - set(new)
            stays = tuple(one for one in new if one not in gone)
            if stays:
                self._new_templates_of[subject_id] = stays
            else:
                self._new_templates_of.pop(subject_id, None)
        self._count += sum(bool(self.templates_of(one)) for one in subjects) - had

    def remove(self, template_ids: Iterable[int]) -> None:
        """Forget templates; unknown ids are passed over."""
        owners = set()
        for template_id in template_ids:
            self._touch(template_id)
            subject_id = self._new_subject_of.pop(template_id, None)
            if subject_id is not None:
                left = tuple(one for one in self._new_templates_of[subject_id] if one != template_id)
                self._new_templates_of[subject_id] = left
                if not left:
                    del self._new_templates_of[subject_id]
                owners.add(subject_id)
            elif (row := self._row(template_id)) is not None:
                self._gone.add(template_id)
                owners.add(int(self._subjects[row]))
        self._count -= sum(not self.templates_of(subject_id) for subject_id in owners)

    def copy(self) -> "TemplateOwners":
        """The same owners as they are now; cheap, as the arrays are shared."""
        twin = object.__new__(TemplateOwners)
        twin.__dict__.update(self.__dict__, _touched=None)
        twin._gone, twin._new_subject_of = set(self._gone), dict(self._new_subject_of)
        twin._new_templates_of = dict(self._new_templates_of)
        return twin

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Template ids (N,), ascending, and their subjects (N,)."""
        ids, subjects = self._ids, self._subjects
        if self._gone:
            stays = ~np.isin(ids, np.fromiter(self._gone, np.int64, len(self._gone)))
            ids, subjects = ids[stays], subjects[stays]
        if self._new_subject_of:
            count = len(self._new_subject_of)
            ids = np.concatenate([ids, np.fromiter(self._new_subject_of, np.int64, count)])
            subjects = np.concatenate([subjects, np.fromiter(self._new_subject_of.values(), np.int64, count)])
            order = np.argsort(ids, kind="stable")
            ids, subjects = ids[order], subjects[order]
        return ids, subjects

    def folded(self) -> "TemplateOwners":
        """The same owners, all of them in arrays."""
        return TemplateOwners(*self.pairs())

    def begin_folding(self) -> "TemplateOwners":
        """A copy to be folded; what happens from now on is noted here, for `follow`."""
        twin = self.copy()
        self._touched = set()
        return twin

    def follow(self, now: "TemplateOwners") -> None:
        """Take in what has happened to owners since they began to be folded into these; it takes as long as that was.

        Args:
            now: the owners whose `begin_folding` gave the copy that these were folded from.
        """
        subjects = {template_id: now.subject_of(template_id) for template_id in now._touched or ()}
        self.remove(one for one, subject_id in subjects.items() if self.subject_of(one) != subject_id)
        self.add((one, subject_id) for one, subject_id in subjects.items() if subject_id is not None)
        now._touched = None

    def _touch(self, template_id: int) -> None:
        if self._touched is not None:
            self._touched.add(template_id)

    def _row(self, template_id: int) -> int | None:
        """Row of a template in the arrays, unless it is gone."""
        row = int(np.searchsorted(self._ids, template_id))
        if row == len(self._ids) or self._ids[row] != template_id or template_id in self._gone:
            return None
        return row
