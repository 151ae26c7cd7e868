"""Several pieces of work, of which one that fails keeps no other waiting."""

from collections.abc import Callable

import pytest

from app.gallery.errors import Busy, DatabaseUnavailable
from app.gallery.try_each import try_each


def failing(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_all_is_done_and_the_first_failure_names_the_others() -> None:
    done = list[int]()
    first, second, third = Busy("one"), DatabaseUnavailable("two"), DatabaseUnavailable("two")
    with pytest.raises(Busy) as raised:
        try_each([failing(first), lambda: done.append(1), failing(second), failing(third), lambda: done.append(2)])
    assert (raised.value, done) == (first, [1, 2])
    assert raised.value.__notes__ == ["and 2 more: app.gallery.errors.DatabaseUnavailable: two"]


def test_one_failure_is_raised_as_it_is() -> None:
    with pytest.raises(Busy) as raised:
        try_each([lambda: None, failing(Busy("one"))])
    assert (str(raised.value), hasattr(raised.value, "__notes__")) == ("one", False)


def test_a_bug_is_not_hidden_behind_what_was_to_be_expected() -> None:
    with pytest.raises(KeyError) as raised:
        try_each([failing(Busy("one")), failing(KeyError("bug"))])
    assert raised.value.__notes__ == ["and 1 more: app.gallery.errors.Busy: one"]


def test_nothing_is_raised_where_nothing_failed() -> None:
    try_each([])
    try_each([lambda: None])
