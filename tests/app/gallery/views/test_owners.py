import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from app.gallery.views.owners import UNKNOWN, TemplateOwners

steps = st.lists(st.tuples(st.sampled_from(["add", "remove", "move"]), st.lists(st.integers(0, 30))))


@given(steps, st.integers(0, 8))
def test_owners_are_those_of_a_dictionary(history: list[tuple[str, list[int]]], folded_after: int) -> None:
    owners, wanted = TemplateOwners(), dict[int, int]()
    for number, (step, templates) in enumerate(history):
        if number == folded_after:
            owners = owners.folded()
        if step == "add":
            owners.add((template, template % 4) for template in templates)
            for template in templates:
                wanted.setdefault(template, template % 4)
        elif step == "move":
            owners.move((template, (template + number) % 4) for template in set(templates))
            wanted |= {template: (template + number) % 4 for template in templates}
        else:
            owners.remove(templates)
            for template in templates:
                wanted.pop(template, None)
        assert [owners.subject_of(template) for template in range(31)] == [wanted.get(one) for one in range(31)]
        found = owners.subjects_of(np.arange(31))
        assert found.tolist() == [wanted.get(template, UNKNOWN) for template in range(31)]
        for subject in range(4):
            assert sorted(owners.templates_of(subject)) == sorted(t for t, owner in wanted.items() if owner == subject)
        assert owners.subjects == len(set(wanted.values()))


def test_a_reader_keeps_the_templates_that_it_saw() -> None:
    owners = TemplateOwners()
    owners.add([(11, 1), (12, 1)])
    seen = owners.templates_of(1)
    owners.remove([11])
    owners.add([(13, 1)])
    assert seen == (11, 12)
    assert owners.templates_of(1) == (12, 13)


@given(steps, steps, steps)
def test_folded_owners_follow_what_happened_meanwhile(
    before: list[tuple[str, list[int]]], start: list[tuple[str, list[int]]], meanwhile: list[tuple[str, list[int]]]
) -> None:
    def play(owners: TemplateOwners, history: list[tuple[str, list[int]]], of: int) -> None:
        for step, templates in history:
            if step == "add":
                owners.add((template, template % of) for template in templates)
            elif step == "move":
                owners.move((template, (template + 1) % of) for template in set(templates))
            else:
                owners.remove(templates)

    owners = TemplateOwners()
    play(owners, before, 4)
    owners = owners.folded()
    play(owners, start, 3)
    folded = owners.begin_folding().folded()
    play(owners, meanwhile, 5)
    folded.follow(owners)
    for got, wanted in zip(folded.pairs(), owners.pairs(), strict=True):
        assert got.tolist() == wanted.tolist()
    assert folded.subjects == owners.subjects


def test_what_is_removed_from_the_arrays_has_no_owner() -> None:
    owners = TemplateOwners(np.array([5, 9]), np.array([1, 1]))
    owners.remove([5])
    assert owners.subjects_of(np.array([5, 9])).tolist() == [UNKNOWN, 1]
    assert (owners.subject_of(5), owners.templates_of(1), len(owners)) == (None, (9,), 1)


def test_pairs_come_by_template_whatever_order_they_were_given_in() -> None:
    owners = TemplateOwners(np.array([5, 3, 9]), np.array([1, 2, 1]))
    assert [values.tolist() for values in owners.pairs()] == [[3, 5, 9], [2, 1, 1]]
    assert owners.templates_of(1) == (5, 9)
    assert owners.subjects == 2


def test_a_reader_finds_the_old_or_the_new_owner_of_what_moves() -> None:
    ids = np.arange(200)
    owners = TemplateOwners(ids, np.zeros(200, np.int64))
    seen, done = set[int](), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.update(owners.subjects_of(ids).tolist())
            seen.add(UNKNOWN if (one := owners.subject_of(100)) is None else one)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(300):
        owners.move((template_id, (turn + 1) % 3) for template_id in ids.tolist())
    done.set()
    reader.join()
    assert seen <= {0, 1, 2}


def test_what_moves_while_the_arrays_are_made_is_followed() -> None:
    owners = TemplateOwners(np.arange(6), np.array([1, 1, 1, 2, 2, 2]))
    owners.move([(0, 2)])
    folded = owners.begin_folding().folded()
    owners.move([(0, 3), (1, 3), (7, 3)])
    owners.remove([3])
    folded.follow(owners)
    assert folded.subjects_of(np.arange(8)).tolist() == owners.subjects_of(np.arange(8)).tolist()
    assert [sorted(folded.templates_of(one)) for one in (1, 2, 3)] == [[2], [4, 5], [0, 1, 7]]
    assert (folded.subjects, len(folded)) == (owners.subjects, len(owners)) == (3, 6)
