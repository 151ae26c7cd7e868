import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from app.gallery.index.codebook import Codebook, Codes, bytes_of, code_length, codes_from, scan
from tests.app.gallery.index.test_segmented import strangers

VECTORS = strangers(8000, seed=0)
PROBES = strangers(2, seed=1)


@pytest.fixture(scope="module")
def codebook() -> Codebook:
    return Codebook.train(VECTORS[:4000])


def filled(codes: Codes, rows: NDArray[np.float32]) -> Codes:
    codes.add(rows)
    return codes


def rows_near(codes: Codes, probe: NDArray[np.float32]) -> set[int]:
    """Rows in the lists that are nearest to a probe."""
    _, near = codes.quantizer.search(probe[None], codes.nprobe)
    lists = [(codes.invlists.get_ids(int(one)), codes.invlists.list_size(int(one))) for one in near[0]]
    return {int(row) for ids, size in lists for row in faiss.rev_swig_ptr(ids, size)}


def test_more_than_a_sixteenth_of_all_rows_are_looked_for_in_all_lists(codebook: Codebook) -> None:
    codes = filled(codebook.no_listed_codes(VECTORS[:4000], len(VECTORS)), VECTORS)
    (near,), (all_over,) = scan(codes, PROBES[:1], 500), scan(codes, PROBES[:1], 501)
    assert set(near.tolist()) <= rows_near(codes, PROBES[0])
    assert not set(all_over.tolist()) <= rows_near(codes, PROBES[0])


def test_all_lists_are_scanned_where_those_near_one_of_the_probes_hold_too_little(codebook: Codebook) -> None:
    here = VECTORS[VECTORS @ PROBES[0] > 0.1]
    codes = filled(codebook.no_listed_codes(VECTORS[:4000], len(VECTORS)), here)
    probes = np.stack([PROBES[0], -PROBES[0]])
    codes.nprobe = 10
    near = len(rows_near(codes, probes[1]))
    assert near < 100 < len(here) // 16 < len(rows_near(codes, probes[0]))
    for depth in (100, near + 1):
        rows = scan(codes, probes, depth)
        assert rows.min() >= 0
        assert [len(set(own)) for own in rows.tolist()] == [depth, depth]


@pytest.mark.parametrize(("size", "lists", "scanned"), [(2**17 - 1, 128, 48), (2**17, 256, 80)])
def test_a_small_segment_has_fewer_lists(codebook: Codebook, size: int, lists: int, scanned: int) -> None:
    codes = codebook.no_listed_codes(VECTORS, size)
    assert (codes.nlist, codes.nprobe) == (lists, scanned)


def test_codes_rank_the_same_in_lists_as_without_them(codebook: Codebook) -> None:
    plain, in_lists = codebook.no_codes(), codebook.no_listed_codes(VECTORS[:4000], len(VECTORS))
    of_plain, of_lists = (set(scan(filled(one, VECTORS), PROBES[:1], 501)[0].tolist()) for one in (plain, in_lists))
    assert len(of_plain & of_lists) > 480


def test_where_there_are_no_more_rows_codes_say_so(codebook: Codebook) -> None:
    (rows,) = scan(filled(codebook.no_codes(), VECTORS[:100]), PROBES[:1], 101).tolist()
    assert (sorted(rows[:100]), rows[100]) == (list(range(100)), -1)


@pytest.mark.parametrize(
    ("dimension", "codes"), [(1, 1), (8, 8), (17, 1), (32, 16), (35, 7), (64, 16), (128, 32), (512, 128)]
)
def test_four_components_have_a_code_and_fewer_where_embeddings_are_short(dimension: int, codes: int) -> None:
    assert code_length(dimension) == codes


def test_memory_counts_codes_and_in_lists_the_numbers_of_their_rows(codebook: Codebook) -> None:
    assert bytes_of(filled(codebook.no_codes(), VECTORS)) == 8 * 8064  # whole blocks of 128
    assert bytes_of(filled(codebook.no_listed_codes(VECTORS[:4000], len(VECTORS)), VECTORS)) == (8 + 8) * 8000


def test_another_index_is_no_codes() -> None:
    with pytest.raises(ValueError, match=r"^it is no index of codes$"):
        codes_from(faiss.serialize_index(faiss.IndexFlatL2(32)))
