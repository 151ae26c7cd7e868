"""`facegallery keys`: create, list, revoke, rotate."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer

from app.access.key_store import KeyStore
from app.access.keys import ApiKey, Scope, parse_scopes
from app.access.opening import open_audit, open_keys
from app.commands.options import JsonOption, complain, opened_database
from app.commands.tables import print_table
from app.gallery.sql.database import open_engine
from app.gallery.sql.migrations import check_schema
from app.gallery.store import GalleryStore
from app.gallery.tables import now
from app.settings import Settings

keys_cli = typer.Typer(no_args_is_help=True, help="Make, list, revoke and rotate API keys.")
_LONGEST_GRACE = 3_153_600_000  # a hundred years
KeyArgument = Annotated[str, typer.Argument(metavar="ID", help="Public part of the key, as `list` shows it.")]


@keys_cli.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is called, such as the program that uses it.")],
    scope: Annotated[
        list[str], typer.Option(help=f"What it is for; again for several: {', '.join(Scope)}.", show_default=False)
    ],
    gallery: Annotated[list[str] | None, typer.Option(help="The only galleries that it is for; else all.")] = None,
    days: Annotated[float | None, typer.Option(max=36_500, help="Days until it expires; else never.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it; it is not shown again."""
    if days is not None and not days > 0:  # NaN neither
        raise typer.BadParameter("a key that expires does so after more than 0 days", param_hint="--days")
    expires_at = None if days is None else now() + timedelta(days=days)
    with _opened_keys() as keys:
        made, key = keys.create(name, parse_scopes(scope), galleries=gallery or None, expires_at=expires_at)
    _show(made, key, as_json)
    if made.galleries:
        with opened_database() as engine:
            missing = made.galleries - {one.name for one in GalleryStore(engine).galleries()}
        for name in sorted(missing):
            complain(f"there is no gallery {name!r} yet; the key is for it once there is", style="yellow")


@keys_cli.command("list")
def list_keys(as_json: JsonOption = False) -> None:
    """List keys, revoked ones too."""
    with _opened_keys() as keys:
        listed = keys.keys()
    if as_json:
        print(json.dumps([_described(key) for key in listed], ensure_ascii=False))
        return
    print_table(
        ("id", "name", "scopes", "galleries", "state", "last used"),
        (
            (
                key.id,
                key.name,
                ", ".join(sorted(key.scopes)),
                "all" if key.galleries is None else ", ".join(sorted(key.galleries)),
                _state(key),
                _moment(key.last_used_at),
            )
            for key in listed
        ),
    )


@keys_cli.command("revoke")
def revoke_key(key: KeyArgument) -> None:
    """Refuse a key from its next call on, in every process."""
    with _opened_keys() as keys:
        print(f"revoked {keys.revoke(key).id}")


@keys_cli.command("rotate")
def rotate_key(
    key: KeyArgument,
    grace: Annotated[
        float, typer.Option(min=0, max=_LONGEST_GRACE, help="Seconds that the old secret is still taken.")
    ] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Give a key a new secret and print it."""
    with _opened_keys() as keys:
        made, new = keys.rotate(key, grace=timedelta(seconds=grace))
    _show(made, new, as_json)


@contextmanager
def _opened_keys() -> Iterator[KeyStore]:
    settings = Settings()
    engine = open_engine(settings.sqlalchemy_url, timeout=settings.database_timeout)
    try:
        check_schema(engine)
        yield open_keys(settings, engine, open_audit(settings, engine))
    finally:
        engine.dispose()


def _show(made: ApiKey, key: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**_described(made), "key": key}, ensure_ascii=False))
        return
    complain(f"key {made.id} for {', '.join(sorted(made.scopes))}; it is not shown again:", style="yellow")
    print(key)


def _described(key: ApiKey) -> dict[str, Any]:
    moments = {
        name: None if value is None else value.isoformat()
        for name in ("created_at", "expires_at", "revoked_at", "last_used_at", "old_until")
        for value in [getattr(key, name)]
    }
    galleries = None if key.galleries is None else sorted(key.galleries)
    return {"id": key.id, "name": key.name, "scopes": sorted(key.scopes), "galleries": galleries, **moments}


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {_moment(key.revoked_at)}"
    if key.expires_at is not None:
        return f"{'expired' if key.expires_at <= now() else 'until'} {_moment(key.expires_at)}"
    return "valid"


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else moment.isoformat(sep=" ", timespec="minutes")
