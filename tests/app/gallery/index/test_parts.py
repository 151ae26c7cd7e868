import numpy as np

from app.gallery.index.parts import Block, Segment
from app.gallery.index.rows import Rows


def test_ids_are_found_in_living_rows_alone() -> None:
    ids, gone = np.array([3, 5, 8]), np.array([1])
    segment = Segment(Rows(np.zeros((3, 1), np.float32), ids, np.ones(3, np.bool_), None, size=3))
    block = Block.empty(4, 1)
    block.append(ids, np.zeros((3, 1), np.float32))
    block.forget(gone)
    segment.rows.kill(gone)
    for part in (segment, block):
        assert part.find(np.array([8, 5, 3, 4, 99])).tolist() == [2, -1, 0, -1, -1]
    assert Block.empty(4, 1).find(np.array([3, 0])).tolist() == [-1, -1]
