"""Indexes outside the process: the vectors of all galleries in an engine that every process searches and writes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from app.gallery.engines.protocol import EngineIndex, IndexEngine, storage_name, storage_prefix
from app.gallery.errors import IndexEngineUnusable

EngineKind = Literal["pgvector", "milvus"]
ENGINE_KINDS: tuple[EngineKind, ...] = get_args(EngineKind)


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """Where the engines are.

    Args:
        database: the gallery database's SQLAlchemy address; pgvector works in that one.
        milvus: address of Milvus, `http://HOST:19530/DATABASE`; empty where there is none.
        milvus_token: `USER:PASSWORD` or an API key; empty where Milvus asks for none.
        timeout: seconds to wait for an answer.
    """

    database: str
    milvus: str = ""
    milvus_token: str = ""
    timeout: float = 10.0

    def __repr__(self) -> str:  # addresses and tokens hold passwords
        return f"EngineAddress(timeout={self.timeout})"


def open_index_engine(kind: EngineKind, address: EngineAddress) -> IndexEngine:
    """The engine that keeps the vectors, ready for use; its driver is imported here, as only its users install it.

    Raises:
        IndexEngineUnusable: the settings do not go together, a package is missing, or the engine lacks what is needed.
        DatabaseUnavailable: it does not answer.
    """
    return _OPEN[kind](address)


def _open_pgvector(address: EngineAddress) -> IndexEngine:
    if not address.database.startswith(("postgresql", "postgres:")):
        raise IndexEngineUnusable(
            "FACEGALLERY_INDEX=pgvector keeps the vectors in the gallery's own PostgreSQL, and the database is another "
            "one; set FACEGALLERY_DATABASE_URL to postgresql://… or choose another index"
        )
    try:
        from app.gallery.engines.pgvector import PgvectorEngine
    except ImportError as error:
        raise _package_missing("pgvector", error) from error
    return PgvectorEngine(address.database, timeout=address.timeout)


def _open_milvus(address: EngineAddress) -> IndexEngine:
    if not address.milvus:
        raise IndexEngineUnusable(
            "FACEGALLERY_INDEX=milvus needs the address of Milvus; set FACEGALLERY_MILVUS_URI to http://HOST:19530"
        )
    try:
        from app.gallery.engines.milvus import MilvusEngine
    except ImportError as error:
        raise _package_missing("milvus", error) from error
    return MilvusEngine(address.milvus, token=address.milvus_token, timeout=address.timeout)


def _package_missing(kind: EngineKind, error: ImportError) -> IndexEngineUnusable:
    extra = {"pgvector": "postgres", "milvus": "milvus"}[kind]
    return IndexEngineUnusable(
        f"FACEGALLERY_INDEX={kind} needs the package {error.name}; install facegallery with the extra `{extra}`"
    )


_OPEN: Mapping[EngineKind, Callable[[EngineAddress], IndexEngine]] = {
    "pgvector": _open_pgvector,
    "milvus": _open_milvus,
}

__all__ = [
    "ENGINE_KINDS",
    "EngineAddress",
    "EngineIndex",
    "EngineKind",
    "IndexEngine",
    "open_index_engine",
    "storage_name",
    "storage_prefix",
]
