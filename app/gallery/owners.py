"""Who owns which template, kept in memory beside an index."""

from collections.abc import Iterable


class TemplateOwners:
    """Template ids and subject ids, found either way; one thread writes while others read."""

    def __init__(self) -> None:
        self._subject_of: dict[int, int] = {}
        # Tuples that are replaced, not lists that change: a reader beside the writer has the old one or the new one.
        self._templates_of: dict[int, tuple[int, ...]] = {}

    @property
    def subjects(self) -> int:
        """Number of subjects that have a template."""
        return len(self._templates_of)

    def subject_of(self, template_id: int) -> int | None:
        """The subject of a template, or None where it is not known."""
        return self._subject_of.get(template_id)

    def templates_of(self, subject_id: int) -> tuple[int, ...]:
        """The templates of a subject in the order they came; empty where it has none."""
        return self._templates_of.get(subject_id, ())

    def add(self, owned: Iterable[tuple[int, int]]) -> None:
        """Add pairs of template and subject; a template that is there already changes nothing."""
        added: dict[int, list[int]] = {}
        for template_id, subject_id in owned:
            if template_id not in self._subject_of:
                self._subject_of[template_id] = subject_id
                added.setdefault(subject_id, []).append(template_id)
        for subject_id, template_ids in added.items():
            self._templates_of[subject_id] = (*self.templates_of(subject_id), *template_ids)

    def remove(self, template_ids: Iterable[int]) -> None:
        """Forget templates; unknown ids are passed over."""
        gone = {
            template_id: self._subject_of.pop(template_id)
            for template_id in template_ids
            if template_id in self._subject_of
        }
        for subject_id in set(gone.values()):
            left = tuple(template_id for template_id in self._templates_of[subject_id] if template_id not in gone)
            if left:
                self._templates_of[subject_id] = left
            else:
                del self._templates_of[subject_id]
