"""What a name of a gallery or a key of a subject may be."""

import unicodedata

from app.gallery.errors import InvalidInput

MAX_LENGTH = 200


def normalise_name(name: str, *, part: str) -> str:
    """The name in Unicode's composed form (NFC), so that two ways to type it are one subject.

    Args:
        name: any script; 1 to 200 characters after normalisation, not blank, no control characters or surrogates.
        part: the part of the input that an error names.

    Raises:
        InvalidInput: the name breaks a rule.
    """
    if len(name) > 16 * MAX_LENGTH:  # before normalising, whose time grows with the input
        raise InvalidInput(f"a name has at most {MAX_LENGTH} characters, this one has {len(name)}", part=part)
    normal = unicodedata.normalize("NFC", name)
    if not normal.strip():
        raise InvalidInput("a name must not be empty", part=part)
    if len(normal) > MAX_LENGTH:
        raise InvalidInput(f"a name has at most {MAX_LENGTH} characters, this one has {len(normal)}", part=part)
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in normal):
        raise InvalidInput("a name has no control characters", part=part)
    return normal


def normalise_new_key(key: str) -> str:
    """As `normalise_name`, of a subject that may be new.

    Its key has no part '.' or '..', alone or between slashes: clients resolve those in an address, and who erases the
    subject `../../staff` would erase the gallery `staff`; who erases `..` with httpx, which takes the last slash away
    as well, the gallery that it is in.
    """
    normal = normalise_name(key, part="subject")
    if not {".", ".."}.isdisjoint(normal.split("/")):
        raise InvalidInput("a subject's key has no part '.' or '..', alone or between slashes", part="subject")
    return normal


def normalise_gallery_name(name: str) -> str:
    """As `normalise_name`; a gallery's name is one part of an address, so it has no slash either."""
    normal = normalise_name(name, part="gallery")
    if "/" in normal or normal in {".", ".."}:
        raise InvalidInput("a gallery's name has no slash and is not '.' or '..'", part="gallery")
    return normal
