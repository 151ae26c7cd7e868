"""The engine for indexes that the settings name."""

from app.gallery.engines import ENGINE_KINDS, EngineAddress, IndexEngine, open_index_engine
from app.settings import Settings


def engine_of(settings: Settings) -> IndexEngine | None:
    """The engine outside the process that keeps the vectors, where the settings name one.

    Raises:
        IndexEngineUnusable: the settings do not go together, a package is missing, or the engine lacks what is needed.
        DatabaseUnavailable: it does not answer.
    """
    if settings.index not in ENGINE_KINDS:
        return None
    token = settings.milvus_token
    address = EngineAddress(
        settings.sqlalchemy_url,
        milvus=settings.milvus_uri,
        milvus_token=token.get_secret_value() if token else "",
        timeout=settings.database_timeout,
    )
    return open_index_engine(settings.index, address)
