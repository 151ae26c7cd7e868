"""Whether a file can be written where somebody wants it, asked before the work that it is to hold."""

import tempfile
from pathlib import Path

from app.gallery.backup import refuse_databases
from app.gallery.errors import InvalidInput, StorageUnwritable
from app.settings import Settings


def check_place(file: Path) -> None:
    """Make sure that a file can be made, or replaced, here, and is none of the databases'; nothing is left behind.

    Raises:
        InvalidInput: it is one that a database consists of, or `-`.
        StorageUnwritable: it is a folder, or its folder is not there or takes no file.
    """
    if str(file) == "-":
        raise InvalidInput("`-` is no file: nothing is written to standard output; name a file", part="file")
    if file.is_dir():
        raise StorageUnwritable(f"{file} is a folder; name a file")
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise StorageUnwritable(f"{file} cannot be written: {error.strerror}") from error
    settings = Settings()
    refuse_databases(file, [settings.sqlalchemy_url, settings.sqlalchemy_vault_url])
