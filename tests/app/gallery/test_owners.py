from hypothesis import given
from hypothesis import strategies as st

from app.gallery.owners import TemplateOwners

steps = st.lists(
    st.tuples(st.just("add"), st.lists(st.integers(0, 30))) | st.tuples(st.just("remove"), st.lists(st.integers(0, 30)))
)


@given(steps)
def test_owners_are_those_of_a_dictionary(history: list[tuple[str, list[int]]]) -> None:
    owners, wanted = TemplateOwners(), dict[int, int]()
    for step, templates in history:
        if step == "add":
            owners.add((template, template % 4) for template in templates)
            for template in templates:
                wanted.setdefault(template, template % 4)
        else:
            owners.remove(templates)
            for template in templates:
                wanted.pop(template, None)
        assert [owners.subject_of(template) for template in range(31)] == [wanted.get(one) for one in range(31)]
        for subject in range(4):
            assert owners.templates_of(subject) == tuple(one for one, owner in wanted.items() if owner == subject)
        assert owners.subjects == len(set(wanted.values()))


def test_a_reader_keeps_the_templates_that_it_saw() -> None:
    owners = TemplateOwners()
    owners.add([(11, 1), (12, 1)])
    seen = owners.templates_of(1)
    owners.remove([11])
    owners.add([(13, 1)])
    assert seen == (11, 12)
    assert owners.templates_of(1) == (12, 13)
