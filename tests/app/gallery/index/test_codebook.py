import faiss
import numpy as np
from numpy.typing import NDArray

from app.gallery.index.codebook import Codebook, Codes, scan
from tests.app.gallery.index.test_segmented import strangers

VECTORS = strangers(8000, seed=0)
PROBES = strangers(2, seed=1)


def listed(rows: NDArray[np.float32], sample: NDArray[np.float32]) -> Codes:
    codes = Codebook.train(sample).no_listed_codes(sample)
    codes.add(rows)
    return codes


def rows_near(codes: Codes, probe: NDArray[np.float32]) -> set[int]:
    """Rows in the lists that are nearest to a probe."""
    _, near = codes.quantizer.search(probe[None], codes.nprobe)
    lists = [(codes.invlists.get_ids(int(one)), codes.invlists.list_size(int(one))) for one in near[0]]
    return {int(row) for ids, size in lists for row in faiss.rev_swig_ptr(ids, size)}


def test_more_than_a_sixteenth_of_all_rows_are_looked_for_in_all_lists() -> None:
    codes = listed(VECTORS, VECTORS[:4000])
    (near,), (all_over,) = scan(codes, PROBES[:1], 500), scan(codes, PROBES[:1], 501)
    assert set(near.tolist()) <= rows_near(codes, PROBES[0])
    assert not set(all_over.tolist()) <= rows_near(codes, PROBES[0])


def test_all_lists_are_scanned_where_those_near_one_of_the_probes_hold_too_little() -> None:
    here = VECTORS[VECTORS @ PROBES[0] > 0.1]
    codes = listed(here, VECTORS[:4000])
    probes = np.stack([PROBES[0], -PROBES[0]])
    codes.nprobe = 10
    assert len(rows_near(codes, probes[1])) < 100 < len(here) // 16 < len(rows_near(codes, probes[0]))
    rows = scan(codes, probes, 100)
    assert rows.min() >= 0
    assert [len(set(own)) for own in rows.tolist()] == [100, 100]
