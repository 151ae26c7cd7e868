import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.gallery.errors import InvalidInput
from app.gallery.names import MAX_LENGTH, normalise_gallery_name, normalise_name, normalise_new_key

DECOMPOSED = "Ame\u0301lie"


@pytest.mark.parametrize(
    "name",
    [
        "anna",
        "Анна",
        "王小明",
        "محمد علي",
        "שרה",
        "👩🏽‍🚀",
        "O'Brien; DROP TABLE subject",
        "a/b",
        "x" * MAX_LENGTH,
        "😀" * MAX_LENGTH,
    ],
)
def test_a_name_of_any_script_stays_as_it_is(name: str) -> None:
    assert normalise_name(name, part="subject") == name


def test_two_ways_to_type_a_name_are_one() -> None:
    assert normalise_name(DECOMPOSED, part="subject") == "Am\u00e9lie"


def test_the_composed_form_counts() -> None:
    assert normalise_name("e\u0301" * MAX_LENGTH, part="subject") == "\u00e9" * MAX_LENGTH


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "a name must not be empty"),
        (" \t\n", "a name must not be empty"),
        ("\u3000", "a name must not be empty"),
        ("x" * 201, "a name has at most 200 characters, this one has 201"),
        ("x" * 10_000, "a name has at most 200 characters, this one has 10000"),
        ("a\x00b", "a name has no control characters"),
        ("a\nb", "a name has no control characters"),
        ("a\x85b", "a name has no control characters"),
        ("a\ud800", "a name has no control characters"),
    ],
)
def test_a_name_that_breaks_a_rule_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        normalise_name(name, part="subject")
    assert (str(refused.value), refused.value.part) == (sentence, "subject")


@pytest.mark.parametrize("key", ["../../staff", "a/..", "./a", "a/./b", "/..", ".", ".."])
def test_a_new_key_does_not_lead_to_another_address(key: str) -> None:
    assert normalise_name(key, part="subject") == key  # one that is there can be erased
    with pytest.raises(InvalidInput, match="no part") as refused:
        normalise_new_key(key)
    assert refused.value.part == "subject"


@pytest.mark.parametrize("key", ["a/b", "/", "...", "a/.b", DECOMPOSED])
def test_other_new_keys_are_taken(key: str) -> None:
    assert normalise_new_key(key) == normalise_name(key, part="subject")


@pytest.mark.parametrize("name", ["a/b", "/", ".", ".."])
def test_a_gallery_name_is_one_part_of_an_address(name: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        normalise_gallery_name(name)
    assert refused.value.part == "gallery"


@pytest.mark.parametrize(("name", "normal"), [("...", "..."), (".hidden", ".hidden"), (DECOMPOSED, "Am\u00e9lie")])
def test_other_gallery_names_are_taken(name: str, normal: str) -> None:
    assert normalise_gallery_name(name) == normal


@given(st.text(st.characters(), max_size=250))
def test_what_is_taken_is_normal_and_can_be_stored(text: str) -> None:
    try:
        normal = normalise_name(text, part="subject")
    except InvalidInput:
        return
    assert normalise_name(normal, part="subject") == normal
    assert unicodedata.is_normalized("NFC", normal)
    assert 1 <= len(normal) <= MAX_LENGTH
    assert normal.encode().decode() == normal
