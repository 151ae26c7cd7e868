"""`facegallery reembed`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from app.commands.options import Exit, GalleryOption, JsonOption, complain, opened_store
from app.commands.progress import shown_progress
from app.gallery.engines.leftovers import EngineLeftovers
from app.gallery.names import normalise_gallery_name
from app.gallery.policy import FixedDistance
from app.gallery.reembedding.move import Move, move_back, move_gallery, previous_extractor
from app.gallery.reembedding.store import ReembeddingStore
from app.gallery.service import DEFAULT_GALLERY
from app.gallery.store import GalleryStore
from app.index_engine import engine_of
from app.settings import Settings
from model.card import read_card
from model.errors import FacegalleryError, ModelFileError
from model.extractor import Extractor
from model.pipeline import WEIGHTS


def reembed_command(
    extractor: Annotated[
        str | None, typer.Option("--extractor", help="The new extractor, the name of a folder in the weights.")
    ] = None,
    gallery: GalleryOption = DEFAULT_GALLERY,
    back: Annotated[bool, typer.Option("--back", help="Go back to the extractor that the gallery left last.")] = False,
    discard: Annotated[
        bool, typer.Option("--discard", help="Erase the embeddings of the other extractor; then there is no way back.")
    ] = False,
    without_missing: Annotated[
        bool, typer.Option("--without-missing", help="Leave behind the templates that cannot follow.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Move a gallery to another extractor while it serves, by the crops that were kept.

    Exit codes: 0 done, 1 failed, 3 subjects are listed that must be enrolled again; without `--without-missing` the
    gallery has not moved then.
    """
    if [extractor is not None, back, discard].count(True) != 1:
        raise typer.BadParameter("choose one of --extractor, --back and --discard")
    name = normalise_gallery_name(gallery)
    with opened_store() as store:
        if discard:
            erased = _discard(store, name)
            _drop_left(store, name)
            print(json.dumps({"gallery": name, "erased": erased}) if as_json else f"{erased} old embeddings erased")
            return
        if back:
            move = move_back(store, name, _find(previous_extractor(store, name)), without_missing=without_missing)
        else:
            move = _move(store, name, _load(extractor or ""), without_missing)
        if move.state == "moved":
            _drop_left(store, name)
    _tell(move, as_json)
    raise typer.Exit(Exit.PARTLY if move.incomplete else Exit.DONE)


def _move(store: GalleryStore, name: str, extractor: Extractor, without_missing: bool) -> Move:
    total = ReembeddingStore(store.engine).count_missing(store.gallery(name), extractor.card.identity)
    with shown_progress("embedding", total) as progress:
        return move_gallery(store, name, extractor, without_missing=without_missing, progress=progress)


def _discard(store: GalleryStore, name: str) -> int:
    gallery, moves = store.gallery(name), ReembeddingStore(store.engine)
    with shown_progress("erasing", moves.count_others(gallery)) as progress:
        return moves.discard(gallery, progress=progress)


def _drop_left(store: GalleryStore, name: str) -> None:
    """Have the engine, where there is one, drop the index of the extractor that the gallery has left."""
    try:
        engine = engine_of(Settings())
        if engine is None:
            return
        try:
            EngineLeftovers(store.engine, engine).drop_left(name)
        finally:
            engine.close()
    except FacegalleryError as error:
        complain(
            f"the engine keeps the index of the other extractor for now ({error}); the service drops it", style="yellow"
        )


def _load(name: str) -> Extractor:
    settings = Settings()
    folder = (settings.weights_dir or WEIGHTS) / name
    return Extractor.load(folder, runtime=settings.runtime, threads=settings.threads)


def _find(identity: str) -> Extractor | None:
    """The extractor of an identity, if the weights have it."""
    name = identity.partition("@")[0]
    try:
        card = read_card((Settings().weights_dir or WEIGHTS) / Path(name).name)
        return _load(name) if card.identity == identity else None
    except ModelFileError:
        return None


def _tell(move: Move, as_json: bool) -> None:
    gallery = move.gallery
    if as_json:
        subjects = [{"subject": one.key, "missing": one.missing, "templates": one.templates} for one in move.incomplete]
        document = {
            "gallery": gallery.name,
            "extractor": gallery.extractor,
            "moved": move.state == "moved",
            "embedded": move.embedded,
            "enroll_again": subjects,
        }
        print(json.dumps(document, ensure_ascii=False))
        return
    for one in move.incomplete:
        complain(f"enroll again: {one.key} ({one.missing} of {one.templates} templates)", style="yellow")
    if move.state == "moved":
        print(f"gallery {gallery.name!r} belongs to {gallery.extractor} now; {move.embedded} templates were embedded")
        if isinstance(gallery.policy, FixedDistance):
            complain(
                "its threshold is a fixed distance, which means something else now: choose it anew", style="yellow"
            )
    elif move.state == "there":
        print(f"gallery {gallery.name!r} belongs to {gallery.extractor} already")
    else:
        print(f"gallery {gallery.name!r} stays with {gallery.extractor}: the templates named above have no usable crop")
        complain(
            "set FACEGALLERY_KEEP_CROPS=true and send their photos again (`facegallery import`, POST /enroll), or add "
            "--without-missing",
            style="yellow",
        )
