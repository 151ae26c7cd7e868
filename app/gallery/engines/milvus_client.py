"""pymilvus, kept from setting up the logging of the whole process.

It does so when it is imported, which closes the handlers that others log to, and with one of them standard error.
"""

import logging.config

_configure = logging.config.dictConfig
logging.config.dictConfig = lambda config: None  # noqa: ARG005
try:
    from pymilvus import DataType, MilvusClient
    from pymilvus.exceptions import MilvusException, ParamError
finally:
    logging.config.dictConfig = _configure

__all__ = ["DataType", "MilvusClient", "MilvusException", "ParamError"]
