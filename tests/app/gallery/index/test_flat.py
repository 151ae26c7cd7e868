import numpy as np

from app.gallery.index import FlatIndex


def test_an_erased_embedding_does_not_stay_in_memory() -> None:
    index = FlatIndex(4)
    index.add(np.arange(4), np.eye(4, dtype=np.float32))
    index.remove(np.array([1, 3]))
    assert sorted(index._rows[:2].argmax(axis=1).tolist()) == [0, 2]
    assert not index._rows[2:4].any()
