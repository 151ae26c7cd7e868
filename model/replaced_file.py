"""Files that are there whole or not at all."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Give a draft beside a file to write, and put it in the file's place in one step once the block has ended.

    Where the block fails, for example because the disk is full, the draft is removed and the file stays as it was.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def replaced_privately(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write, for its owner alone, and put it in another's place in one step once the block has ended.

    Until then it has no name, where the file system can do that: nothing is left of it where the process is killed.

    Raises:
        OSError: it cannot be written; the file stays as it was.
    """
    draft = path.with_name(f".{secrets.token_hex(8)}.tmp")
    nameless = _can_name_later(path.parent, draft)
    flags = os.O_TMPFILE if nameless else os.O_CREAT | os.O_EXCL
    handle = os.open(path.parent if nameless else draft, flags | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(handle)
            if nameless:
                _name(handle, draft)
        draft.replace(path)
        flush_folder(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _can_name_later(folder: Path, name: Path) -> bool:
    """Whether a file can be made in a folder without a name, and get one; Linux can."""
    if not hasattr(os, "O_TMPFILE"):
        return False
    try:
        handle = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        _name(handle, name)
        name.unlink()
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _name(handle: int, path: Path) -> None:
    # With a folder's handle, though the path is whole, as Python follows the link in /proc then alone.
    os.link(f"/proc/self/fd/{handle}", path, src_dir_fd=handle, follow_symlinks=True)


def flush_folder(folder: Path) -> None:
    """Have the names in a folder outlast a loss of power: files made, renamed or removed there.

    A file system that cannot do that, as one that a virtual machine shares with its host, is left to itself.

    Raises:
        OSError: the disk does not take it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(handle)
