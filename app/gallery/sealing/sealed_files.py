"""Files sealed at rest, opened at memory's speed: AES-256-GCM in chunks, as in the STREAM construction.

Hoang, Reyhanitabar, Rogaway, Vizár: Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance, CRYPTO 2015.
A chunk's nonce holds its number and whether it is the last, so chunks that were reordered, dropped or cut off do not
open. Each snapshot has a key of its own in the vault: destroying that key makes every copy of the snapshot unreadable.

    key = vault.new_key("snapshot")
    seal_file(vectors, sealed, key.secret, b"gallery 3/sface@0ba9fbfa/revision 17/vectors")
    ...
    open_file(sealed, private, vault.open_keys([key_id])[key_id], b"gallery 3/sface@0ba9fbfa/revision 17/vectors")
"""

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.gallery.errors import FileTampered, StorageUnwritable
from app.gallery.small_pieces import in_small_pieces

_CHUNK = 2**20
_TAG = 16
_MAGIC = b"FGSEAL1\n"
_HEADER = struct.Struct(">8s7sQ")  # magic, first part of the nonces, bytes of the plain file


def seal_file(source: Path, target: Path, key: bytes, associated: bytes) -> None:
    """Seal a file; the target, for its owner alone, appears whole or not at all.

    Args:
        source: the plain file; it stays.
        target: the sealed file; one that is there is replaced.
        key: 32 bytes, used for this snapshot's files only.
        associated: what the file is (gallery, extractor, revision, name); it opens with the same bytes only.

    Raises:
        StorageUnwritable: the disk is full, or the folder is read-only.
    """
    cipher = AESGCM(key)
    draft = target.with_name(f".{target.name}.{os.urandom(8).hex()}")
    try:
        with source.open("rb") as reader, open(draft, "xb", opener=_private) as writer:
            size = os.fstat(reader.fileno()).st_size
            header = _HEADER.pack(_MAGIC, os.urandom(7), size)
            writer.write(header)
            done = 0
            for number in range(_chunks(size)):
                chunk = reader.read(_CHUNK)
                done += len(chunk)
                nonce = _nonce(header, number, last=number == _chunks(size) - 1)
                writer.writelines(in_small_pieces(cipher.encrypt(nonce, chunk, header + associated)))
            if done != size or reader.read(1):
                raise FileTampered(f"{source.name} changed while it was sealed")
            writer.flush()
            os.fsync(writer.fileno())
        draft.replace(target)
    except OSError as error:
        raise StorageUnwritable(f"{target.name} cannot be sealed: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def open_file(sealed: Path, target: Path, key: bytes, associated: bytes) -> None:
    """Open a sealed file into another, for its owner alone, which appears whole or not at all.

    Args:
        sealed: what `seal_file` wrote.
        target: the plain file, on a file system in memory; its space is taken beforehand, so that a full one is an
            error here and no crash of whoever maps it.
        key: as it was sealed with.
        associated: as it was sealed with.

    Raises:
        FileTampered: it was changed, cut off, or sealed with another key or for another place; there is no target.
        FileNotFoundError: there is no such sealed file.
        StorageUnwritable: there is no room for the target.
    """
    draft = target.with_name(f".{target.name}.{os.urandom(8).hex()}")
    try:
        with sealed.open("rb") as reader, _tampering(sealed):
            header, size = _header(reader, sealed)
            with open(draft, "x+b", opener=_private) as writer:
                for start in range(0, size, _CHUNK):
                    os.posix_fallocate(writer.fileno(), start, min(_CHUNK, size - start))
                _open_chunks(reader.fileno(), writer.fileno(), size, AESGCM(key), header, associated)
        draft.replace(target)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not sealed.exists():
            raise
        raise StorageUnwritable(f"{sealed.name} cannot be opened into {target.parent}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def try_file(sealed: Path, key: bytes, associated: bytes) -> None:
    """See whether a sealed file opens, a piece at a time: nothing is written, and it may be larger than the memory.

    Args:
        sealed: what `seal_file` wrote.
        key: as it was sealed with.
        associated: as it was sealed with.

    Raises:
        FileTampered: it was changed, cut off, or sealed with another key or for another place.
        OSError: it cannot be read.
    """
    cipher = AESGCM(key)
    with sealed.open("rb") as reader, _tampering(sealed):
        header, size = _header(reader, sealed)
        for number in range(_chunks(size)):
            nonce = _nonce(header, number, last=number == _chunks(size) - 1)
            cipher.decrypt(nonce, reader.read(_CHUNK + _TAG), header + associated)


def _header(reader: BinaryIO, sealed: Path) -> tuple[bytes, int]:
    """The header of a sealed file, which was just opened, and the bytes of the plain one.

    Raises:
        FileTampered: it is none, or not as long as it says.
    """
    header = reader.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise FileTampered(f"{sealed.name} is no sealed file")
    size: int = _HEADER.unpack(header)[2]
    if os.fstat(reader.fileno()).st_size != _HEADER.size + size + _chunks(size) * _TAG:
        raise FileTampered(f"{sealed.name} was cut off or added to")
    return header, size


@contextmanager
def _tampering(sealed: Path) -> Iterator[None]:
    """Tell of a piece that does not open."""
    try:
        yield
    except InvalidTag as error:
        raise FileTampered(
            f"{sealed.name} does not open: it was changed, or sealed with another key or for another place"
        ) from error


def _open_chunks(source: int, target: int, size: int, cipher: AESGCM, header: bytes, associated: bytes) -> None:
    """Decrypt straight from one mapping into the other, with no copy in between."""
    chunks = _chunks(size)
    with closing(mmap.mmap(source, 0, prot=mmap.PROT_READ)) as sealed, memoryview(sealed) as view:
        if not size:
            cipher.decrypt(_nonce(header, 0, last=True), bytes(view[_HEADER.size :]), header + associated)
            return
        with closing(mmap.mmap(target, size)) as plain, memoryview(plain) as room:
            for number in range(chunks):
                start, length = number * _CHUNK, min(_CHUNK, size - number * _CHUNK)
                place = _HEADER.size + number * (_CHUNK + _TAG)
                with view[place : place + length + _TAG] as chunk, room[start : start + length] as opened:
                    nonce = _nonce(header, number, last=number == chunks - 1)
                    cipher.decrypt_into(nonce, chunk, header + associated, opened)
                # What is read and written is let go of bit by bit: of a gigabyte at once it takes long, with the
                # interpreter's lock held.
                sealed.madvise(mmap.MADV_DONTNEED, place - place % mmap.PAGESIZE, length)
                plain.madvise(mmap.MADV_DONTNEED, start, length)


def _chunks(size: int) -> int:
    return max(1, -(-size // _CHUNK))


def _nonce(header: bytes, number: int, *, last: bool) -> bytes:
    return header[8:15] + struct.pack(">I?", number, last)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
