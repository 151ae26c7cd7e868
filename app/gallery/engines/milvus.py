"""Milvus: the vectors in a cluster of their own."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc

from app.gallery.engines.milvus_client import DataType, MilvusClient, MilvusException, ParamError
from app.gallery.engines.milvus_index import MilvusIndex
from app.gallery.engines.milvus_position import POSITIONS, STRONG
from app.gallery.engines.protocol import storage_name
from app.gallery.errors import DatabaseUnavailable
from app.gallery.records import Gallery
from app.gallery.try_each import try_each

# Half the links of pgvector's graph: to keep more templates costs little here. Milvus builds one for each sealed
# segment by itself; what is younger is searched in full, if its interim index is switched off (docs/engines.md).
_GRAPH: dict[str, Any] = {"index_type": "HNSW", "params": {"M": 16, "efConstruction": 128}}
_EXACT: dict[str, Any] = {"index_type": "FLAT", "params": {}}

_OTHERS_MAKE = 2.0  # seconds in which another thread or process makes a collection that it has begun

# A server that is back is found within a second; left alone, the client would wait up to two minutes.
_CONNECTION = {
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
    "grpc.use_local_subchannel_pool": 1,
}


class MilvusEngine:
    """A collection for each gallery, and a small one for the positions of all.

    Args:
        uri: `http://HOST:PORT/DATABASE`; a path that ends in `.db` runs Milvus Lite in this process, to try it.
        token: `USER:PASSWORD` or an API key; empty where Milvus asks for none.
        timeout: seconds to wait for an answer.
        exact: compute every distance instead of searching a graph.

    Raises:
        DatabaseUnavailable: Milvus does not answer.
    """

    def __init__(self, uri: str, *, token: str = "", timeout: float, exact: bool = False) -> None:
        # Every failure comes as an exception too; its traceback on standard error would only hide our line.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        self._timeout = timeout
        self._kind = _EXACT if exact else _GRAPH
        self._position_lock = threading.Lock()
        with milvus_errors():
            self._client = MilvusClient(uri, token=token, timeout=timeout, dedicated=True, grpc_options=_CONNECTION)
            schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("name", DataType.VARCHAR, max_length=100, is_primary=True)
            schema.add_field("position", DataType.INT64)
            schema.add_field("generation", DataType.VARCHAR, max_length=40)
            schema.add_field("unused", DataType.FLOAT_VECTOR, dim=2)  # Milvus takes no collection without a vector
            self._ensure(POSITIONS, schema, "unused", _EXACT)

    def index(self, gallery: Gallery) -> MilvusIndex:
        """As `IndexEngine.index`."""
        name = storage_name(gallery)
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=gallery.dimension)
        index = MilvusIndex(
            self._client,
            name,
            gallery.dimension,
            errors=milvus_errors,
            position_lock=self._position_lock,
            timeout=self._timeout,
        )
        with milvus_errors():
            if not self._client.has_collection(name, timeout=self._timeout):
                index.begin()  # a position that is there belongs to a collection that was dropped
            self._ensure(name, schema, "embedding", self._kind)
        index.point()
        return index

    def names(self, prefix: str) -> list[str]:
        """As `IndexEngine.names`."""
        with milvus_errors():
            found = self._client.list_collections(timeout=self._timeout)
        return sorted(name for name in found if name.startswith(prefix))

    def drop(self, prefix: str, *, but: str = "") -> None:
        """As `IndexEngine.drop`."""
        try_each(partial(self._drop, name) for name in self.names(prefix) if name != but)

    def nobodys(self) -> list[str]:
        """As `IndexEngine.nobodys`: a Milvus may be that of several databases, so nobody can tell."""
        return []

    def close(self) -> None:
        """As `IndexEngine.close`."""
        self._client.close()

    def _drop(self, name: str) -> None:
        with milvus_errors():
            # The position first: without it a collection is filled again, whatever is left of it.
            self._client.delete(POSITIONS, ids=[name], timeout=self._timeout)
            self._client.drop_collection(name, timeout=self._timeout)

    def _ensure(self, name: str, schema: Any, field: str, kind: dict[str, Any]) -> None:
        """Make a collection and its index, and load it; each step goes on where another process has come to."""
        client, timeout = self._client, self._timeout
        parameters = MilvusClient.prepare_index_params()
        parameters.add_index(field, metric_type="L2", **kind)
        _make_unless(
            lambda: client.has_collection(name, timeout=timeout),
            lambda: client.create_collection(name, schema=schema, consistency_level=STRONG, timeout=timeout),
        )
        _make_unless(
            lambda: client.list_indexes(name, timeout=timeout),
            lambda: client.create_index(name, parameters, timeout=timeout),
        )
        client.load_collection(name, timeout=timeout)


def _make_unless(there: Callable[[], object], make: Callable[[], object]) -> None:
    """Make what is not there; somebody who is making it at the same moment is waited for."""
    until = time.monotonic() + _OTHERS_MAKE
    while not there():
        try:
            make()
        except MilvusException:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return


@contextmanager
def milvus_errors() -> Iterator[None]:
    """Turn the client's failures into the service's error; what is a bug stays what it is.

    Raises:
        DatabaseUnavailable: Milvus does not answer, or not as it should.
    """
    try:
        yield
    except ParamError:
        raise
    except MilvusException as error:
        raise DatabaseUnavailable(f"Milvus does not do its part: {_first_line(error.message)}; try again") from error
    except grpc.RpcError as error:
        raise DatabaseUnavailable("Milvus does not answer; try again") from error


def _first_line(message: object) -> str:
    lines = str(message).strip().splitlines()
    return lines[0][:200].rstrip(".;") if lines else "no reason given"
