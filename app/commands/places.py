"""Whether a file can be written where somebody wants it, asked before the work that it is to hold."""

import stat
import tempfile
from pathlib import Path

from app.access.pepper import FILE_NAME
from app.gallery.errors import InvalidInput, StorageUnwritable
from app.gallery.moving.backup import refuse_databases
from app.settings import Settings


def check_place(file: Path) -> Path:
    """Make sure that a file can be made, or replaced, here, and is none of the service's own; nothing is left behind.

    Returns:
        Where it is to be written: a link stays, and what it leads to is replaced.

    Raises:
        InvalidInput: it is one that a database consists of, a key's, or `-`.
        StorageUnwritable: it is a folder, a pipe or a device, or its folder is not there or takes no file.
    """
    if str(file) == "-":
        raise InvalidInput("`-` is no file: nothing is written to standard output; name a file", part="file")
    if file.is_dir():
        raise StorageUnwritable(f"{file} is a folder; name a file")
    try:
        if file.exists() and not stat.S_ISREG(file.stat().st_mode):  # in whose place a file would be put
            raise StorageUnwritable(f"{file} is no file but a pipe or a device; name a file")
        place = file.resolve()
        with tempfile.TemporaryFile(dir=place.parent):
            pass
    except OSError as error:
        raise StorageUnwritable(f"{file} cannot be written: {error.strerror}") from error
    except RuntimeError as error:
        raise StorageUnwritable(f"{file} cannot be written: links lead in a circle") from error
    settings = Settings()
    refuse_databases(file, [settings.sqlalchemy_url, settings.sqlalchemy_vault_url])
    keys = (settings.master_key_path, settings.data_dir / FILE_NAME, settings.tls_key, settings.tls_certificate)
    if place in {key.resolve() for key in keys if key is not None}:
        raise InvalidInput(f"{file} holds a key of the service; choose another name", part="file")
    return place
