"""What one process has acknowledged, every other finds on its next call, and what it erased none finds again."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from app.gallery.records import NewTemplate
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from tests.deployed import deployed, made_database
from tests.processes.following import following

EXTRACTOR = "net@0123456789ab"
WRITES = {"sqlite": 1000, "postgresql": 1000}


@contextmanager
def people_in(url: str, folder: Path) -> Iterator[GalleryStore]:
    """The store of an empty gallery in a new database, with the vault and the snapshots in a folder."""
    made_database(url)
    with deployed(url, folder) as parts:
        parts.store.create_gallery("people", extractor=EXTRACTOR, dimension=8, policy=None)
        yield parts.store


@pytest.mark.parametrize(("kind", "processes"), [("sqlite", 2), ("postgresql", 3)])
def test_thousands_of_reads_after_writes_in_other_processes(
    request: pytest.FixtureRequest,
    kind: str,
    processes: int,
    tmp_path: Path,
    new_templates: Callable[[int], list[NewTemplate]],
) -> None:
    url = str(request.getfixturevalue(f"{kind}_url"))
    chance = random.Random(3)
    there: dict[str, tuple[int, NewTemplate]] = {}
    with people_in(url, tmp_path) as store, following(url, tmp_path, processes) as followers:
        for number in range(WRITES[kind]):
            if there and chance.random() < 0.4:
                key = chance.choice(list(there))
                _, template = there.pop(key)
                store.delete_subject("people", key)
                wanted = None
            else:
                key, (template,) = f"subject {number}", new_templates(1)
                made = store.enroll("people", key, [template], metadata=None, extractor=EXTRACTOR, dimension=8)
                there[key] = (made.subject.id, template)
                wanted = made.subject.id
            assert [one.nearest(template.embedding) for one in followers] == [wanted] * processes
            if there:
                key = chance.choice(list(there))
                subject_id, template = there[key]
                assert chance.choice(followers).nearest(template.embedding) == subject_id


class People:
    """A gallery that is written to, and who is in it: subject ids and embeddings by template id."""

    def __init__(self, store: GalleryStore, new_templates: Callable[[int], list[NewTemplate]]) -> None:
        self.store = store
        self.there: dict[int, tuple[int, str, NewTemplate]] = {}
        self._new_templates = new_templates
        self._numbers = 0

    def enroll(self, templates: int) -> NewTemplate:
        self._numbers += 1
        key, new = f"subject {self._numbers}", self._new_templates(templates)
        made = self.store.enroll("people", key, new, metadata=None, extractor=EXTRACTOR, dimension=8)
        of_crop = {one.crop_sha256: one for one in new}
        self.there |= {one.id: (made.subject.id, key, of_crop[one.crop_sha256]) for one in made.added}
        return new[0]

    def delete_template(self, template_id: int) -> NewTemplate:
        self.store.delete_template("people", template_id)
        return self.there.pop(template_id)[2]

    def delete_subject(self, key: str) -> NewTemplate:
        self.store.delete_subject("people", key)
        gone = [template_id for template_id, (_, owner, _) in self.there.items() if owner == key]
        return [self.there.pop(template_id) for template_id in gone][-1][2]

    def merge(self, key: str, into: str) -> NewTemplate:
        merged = self.store.merge_subjects("people", key, into)
        moved = [template_id for template_id, (_, owner, _) in self.there.items() if owner == key]
        self.there |= {template_id: (merged.id, into, self.there[template_id][2]) for template_id in moved}
        return self.there[moved[0]][2]


@pytest.mark.parametrize(("kind", "processes"), [("sqlite", 2), ("postgresql", 3)])
def test_compressed_indexes_follow_merges_deletions_and_rebuilds(
    request: pytest.FixtureRequest,
    kind: str,
    processes: int,
    tmp_path: Path,
    new_templates: Callable[[int], list[NewTemplate]],
) -> None:
    url = str(request.getfixturevalue(f"{kind}_url"))
    chance = random.Random(4)
    with ExitStack() as until_the_end:
        store = until_the_end.enter_context(people_in(url, tmp_path))
        people = People(store, new_templates)
        for _ in range(12):
            people.enroll(500)
        followers = until_the_end.enter_context(following(url, tmp_path, processes, "compressed"))
        for number in range(100):
            template_id = chance.choice(list(people.there))
            key = people.there[template_id][1]
            step = chance.choices(["enroll", "template", "merge", "subject"], [5, 4, 2, 1])[0]
            if step == "template":
                template = people.delete_template(template_id)
            elif step == "merge" and (others := sorted({one[1] for one in people.there.values()} - {key})):
                template = people.merge(key, chance.choice(others))
            elif step == "subject" and sum(one[1] == key for one in people.there.values()) < 100:
                template = people.delete_subject(key)
            else:
                template = people.enroll(3)
            if number % 40 == 25:
                GalleryHistory(store.engine).request_rebuild("people")
            owner = {id(one): subject for subject, _, one in people.there.values()}.get(id(template))
            assert [one.nearest(template.embedding) for one in followers] == [owner] * processes
            subject, _, template = people.there[chance.choice(list(people.there))]
            assert chance.choice(followers).nearest(template.embedding) == subject
        assert all(follower.compressed() for follower in followers)
