"""A gallery moves to another extractor while it serves.

Embeddings of the new extractor are made beside the old from crops that were kept; what is enrolled or erased meanwhile
is followed. One transaction then exchanges the two. The old ones stay, so that the same exchange leads back.

Where people are enrolled all the time each pass leaves those who came meanwhile to the next. As soon as they are few
enough, the transaction that exchanges embeds them itself, while nobody else writes to the gallery. Where
they do not become fewer from pass to pass, as more come than can be embedded, batch after batch is embedded so: whoever
enrolls is slowed down until the move has caught up. Those batches grow where that is not enough, as many callers may
come between two of them: each waits longer then, and the move comes to an end however many they are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from app.gallery.crops import decode_crop
from app.gallery.errors import MoveRefused
from app.gallery.records import Gallery
from app.gallery.reembedding.store import IncompleteSubject, KeptCrop, ReembeddingStore
from app.gallery.store import GalleryStore
from model.errors import UnsupportedImage
from model.extractor import Extractor

_BATCH = 128  # crops that are embedded in one go, and kept in one transaction
_LAST = 32  # of them, in the transaction that exchanges: a second of one core, while whoever enrolls waits
_PATIENCE = 8  # such transactions, after each of which as many come anew, before the next may take twice as many
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Move:
    """What came of moving a gallery.

    Args:
        state: `moved`; `there`, it belonged to that extractor already; `incomplete`, nothing was changed.
        gallery: afterwards.
        embedded: templates that were embedded by this run.
        incomplete: subjects of which templates could not follow; those templates are set aside where it was moved.
    """

    state: Literal["moved", "there", "incomplete"]
    gallery: Gallery
    embedded: int
    incomplete: tuple[IncompleteSubject, ...]


def move_gallery(
    store: GalleryStore,
    name: str,
    extractor: Extractor,
    *,
    without_missing: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Move:
    """Move a gallery to an extractor; after a break it goes on where it was.

    Args:
        store: of the database.
        name: of the gallery.
        extractor: to which.
        without_missing: go without the templates that have no crop; else nothing is changed where there are any.
        progress: told the templates that were embedded.

    Raises:
        GalleryNotFound: as named.
        MoveRefused: there are embeddings of a third extractor, or somebody else moves the gallery.
    """
    gallery, moves, target = store.gallery(name), ReembeddingStore(store.engine, store.seals), extractor.card.identity
    if gallery.extractor == target:
        return Move("there", gallery, 0, ())
    spares = moves.spares(gallery)
    if spares is not None and spares.extractor != target:
        raise MoveRefused(
            f"gallery {name!r} still has embeddings of {spares.extractor}; "
            "erase them first with `facegallery reembed --discard`"
        )
    incomplete = moves.incomplete(gallery, target, with_crops=True)
    if incomplete and not without_missing:
        return Move("incomplete", gallery, 0, tuple(incomplete))
    embedded, unusable, made, catching_up, locked = 0, set[int](), math.inf, True, 0
    while True:
        if catching_up:
            before, (made, unusable) = made, _embed_all(moves, gallery, extractor, progress)
            embedded, catching_up = embedded + made, made < before
        # Counted again there: somebody may have been enrolled without a crop, or a crop may be damaged.
        switch = moves.switch(
            gallery,
            target,
            dimension=extractor.dimension,
            unusable=unusable,
            with_crops=True,
            without_missing=without_missing,
            embed=partial(_embed, extractor),
            at_most=_LAST << locked // _PATIENCE,
        )
        locked += not catching_up
        embedded, unusable = embedded + switch.embedded, unusable | switch.unusable
        progress(switch.embedded)
        if switch.state == "refused":
            return Move("incomplete", gallery, embedded, switch.left_behind)
        if switch.state == "done":
            return Move("moved", store.gallery(name), embedded, switch.left_behind)


def move_back(store: GalleryStore, name: str, extractor: Extractor | None, *, without_missing: bool = False) -> Move:
    """Bring a gallery back to the extractor that it left last.

    Args:
        store: of the database.
        name: of the gallery.
        extractor: the one that it left, where it is at hand: then what was enrolled since can follow by its crops.
        without_missing: go back without the templates that cannot follow.

    Raises:
        GalleryNotFound: as named.
        MoveRefused: the gallery has left no extractor, or its embeddings were discarded.
    """
    gallery, moves = store.gallery(name), ReembeddingStore(store.engine, store.seals)
    target = previous_extractor(store, name)
    if extractor is not None and extractor.card.identity == target:
        return move_gallery(store, name, extractor, without_missing=without_missing)
    switch = moves.switch(
        gallery, target, dimension=None, unusable=(), with_crops=False, without_missing=without_missing
    )
    if switch.state == "refused":
        return Move("incomplete", gallery, 0, switch.left_behind)
    return Move("moved", store.gallery(name), 0, switch.left_behind)


def previous_extractor(store: GalleryStore, name: str) -> str:
    """Identity of the extractor that a gallery left last.

    Raises:
        MoveRefused: it left none, or its embeddings were discarded.
    """
    spares = ReembeddingStore(store.engine, store.seals).spares(store.gallery(name))
    if spares is None or not spares.previous:
        raise MoveRefused(f"gallery {name!r} has no embeddings of an earlier extractor to go back to")
    return spares.extractor


def _embed_all(
    moves: ReembeddingStore, gallery: Gallery, extractor: Extractor, progress: Callable[[int], None]
) -> tuple[int, set[int]]:
    """Embed the crops that there are now whose template has no new embedding; those that come meanwhile are left.

    Answers how many were embedded, and the templates whose crops are damaged.
    """
    made, damaged, after, last = 0, set[int](), 0, moves.last_template(gallery)
    while after < last and (crops := moves.crops_to_embed(gallery, extractor.card.identity, after=after, limit=_BATCH)):
        after = crops[-1].template_id
        ids, embeddings = _embed(extractor, crops)
        damaged |= {crop.template_id for crop in crops} - set(ids)
        if ids:
            moves.add(gallery, extractor.card.identity, ids, embeddings)
            made += len(ids)
        progress(len(crops))
    return made, damaged


def _embed(extractor: Extractor, crops: Sequence[KeptCrop]) -> tuple[list[int], NDArray[np.float32]]:
    """The templates whose crop is whole, and their embeddings (N, D)."""
    ids, pixels = list[int](), list[NDArray[np.uint8]]()
    for crop in crops:
        try:
            pixels.append(decode_crop(crop.image, sha256=crop.sha256))
        except UnsupportedImage as error:
            _log.warning("crop.damaged", template=crop.template_id, reason=str(error))
        else:
            ids.append(crop.template_id)
    embeddings = extractor.embed(np.stack(pixels)) if pixels else np.empty((0, extractor.dimension), np.float32)
    return ids, embeddings
