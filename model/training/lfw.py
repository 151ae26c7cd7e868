"""Labeled Faces in the Wild: the file of official pairs, and the labels that are known to be wrong.

Huang, Ramesh, Berg and Learned-Miller, UMass Amherst TR 07-49, 2007; Huang and Learned-Miller, UM-CS-2014-003, 2014.
The wrong labels are those of the section "Errata" of LFW's page. The official protocol keeps them; order statistics
of the closest non-mated pairs do not bear them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.photo_folder import DatasetError

RELABELLED = {
    "Andrew_Gilligan_0001": "Andrew_Caldecott",
    "Anja_Paerson_0001": "Janica_Kostelic",
    "Carlos_Ruckauf_0001": "Eduardo_Duhalde",
    "Claire_Hentzen_0001": "Morgan_Hentzen",
    "Claire_Hentzen_0002": "Morgan_Hentzen",
    "Debra_Messing_0002": "Ruve_Robertson",
    "Elisabeth_Schumacher_0001": "Elizabeth_Schumacher",
    "Flor_Montulo_0002": "Nora_Bendijo",
    "Janica_Kostelic_0001": "Anja_Paerson",
    "Jim_OBrien_0001": "Jim_OBrien (another)",
    "John_Gruden_0001": "Jon_Gruden",
    "Mahmoud_Abbas_0012": "Hamad_Bin_Isa_al-Khalifa",
    "Martha_Bowen_0002": "Gabrielle_Rose",
    "Michael_Schumacher_0008": "Rubens_Barrichello",
    "Nora_Bendijo_0002": "Flor_Montulo",
    "Recep_Tayyip_Erdogan_0004": "Abdullah_Gul",
    "Shinya_Taniguchi_0001": "Takahiro_Mori",
    "Sung_Hong_Choi_0001": "Choi_Sung-hong",
    "Talisa_Bratt_0001": "Talisa_Soto",
    "Wang_Nan_0001": "Nan_Wang",
    "Wang_Yingfan_0001": "Yingfan_Wang",
    "Wang_Yingfan_0002": "Yingfan_Wang",
    "Wang_Yingfan_0003": "Yingfan_Wang",
}
"""Who is on a photo that carries another name."""

DUPLICATES = frozenset({"Bart_Hendricks_0001", "Carlos_Beltran_0001", "Emmy_Rossum_0001"})
"""Photos that are there twice, the second time under a wrong name."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two photos of the official list, by their names without suffix, and the fold they belong to."""

    left: str
    right: str
    mated: bool
    fold: int


def corrected_subject(photo: str, subject: str) -> str | None:
    """Return who is on a photo according to the errata, or None for a duplicate, which is to be left out."""
    return None if photo in DUPLICATES else RELABELLED.get(photo, subject)


def find_pairs_file(folder: Path) -> Path:
    """Return the ``pairs.txt`` in the folder or beside it.

    Raises:
        DatasetError: there is none.
    """
    for candidate in (folder / "pairs.txt", folder.parent / "pairs.txt"):
        if candidate.is_file():
            return candidate
    raise DatasetError(f"no pairs.txt in {folder} or beside it; give its place with --pairs")


def read_pairs(path: Path) -> tuple[Pair, ...]:
    """Read a file of pairs: folds and n, then for each fold n mated lines (name i j) and n others (name i name j).

    Raises:
        DatasetError: the file cannot be read or has another form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error
    header = _numbers(path, 1, lines[0].split() if lines else [])
    if len(header) != 2 or min(header) < 1:
        raise DatasetError(f"{path}, line 1: expected the number of folds and of pairs, as in '10 300'")
    folds, size = header
    rows = [(number, line.split()) for number, line in enumerate(lines[1:], 2) if line.strip()]
    if len(rows) != 2 * folds * size:
        raise DatasetError(
            f"{path}: {folds} folds of {size} mated and {size} non-mated pairs are not {len(rows)} lines"
        )
    return tuple(_pair(path, number, words, place, size) for place, (number, words) in enumerate(rows))


def _pair(path: Path, line: int, words: Sequence[str], place: int, size: int) -> Pair:
    fold, within = divmod(place, 2 * size)
    mated = within < size
    if len(words) != (3 if mated else 4):
        form = (
            "a mated pair, as in 'Abel_Pacheco 1 4'"
            if mated
            else "a non-mated pair, as in 'Abdel_Madi_Shabneh 1 Dean_Barker 1'"
        )
        raise DatasetError(f"{path}, line {line}: expected {form}")
    left, right = _numbers(path, line, [words[1], words[-1]])
    return Pair(_photo(words[0], left), _photo(words[0] if mated else words[2], right), mated, fold)


def _photo(name: str, number: int) -> str:
    return f"{name}_{number:04d}"


def _numbers(path: Path, line: int, words: Sequence[str]) -> list[int]:
    try:
        return [int(word) for word in words]
    except ValueError as error:
        raise DatasetError(f"{path}, line {line}: expected whole numbers, found {' '.join(words)!r}") from error
