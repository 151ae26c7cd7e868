"""The server's own secret, kept apart from the database: keys are hashed and the audit log is sealed with it.

Who has the database alone can neither try keys nor make one up, and cannot seal a shortened audit log.
"""

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

import structlog

from app.access.errors import PepperUnusable
from app.gallery.errors import StorageUnwritable

FILE_NAME = "key-pepper"
MIN_LENGTH = 32
_log = structlog.get_logger()


class Pepper:
    """A secret of at least 32 characters; it has no printed form."""

    __slots__ = ("_secret",)

    def __init__(self, secret: str, *, source: str = "key pepper") -> None:
        if len(secret) < MIN_LENGTH:
            raise PepperUnusable(
                f"{source}: a pepper has at least {MIN_LENGTH} characters; make one with `openssl rand -hex 32`"
            )
        self._secret = secret.encode()

    def derive(self, purpose: str) -> bytes:
        """A secret of 32 bytes for one purpose alone (HMAC-SHA256)."""
        return hmac.digest(self._secret, f"facegallery/{purpose}/1".encode(), hashlib.sha256)

    @property
    def fingerprint(self) -> str:
        """What a row says about the pepper that it was made with; gives nothing of it away."""
        return self.derive("fingerprint").hex()[:16]


def read_pepper(secret: str | None, folder: Path, *, make: bool) -> Pepper:
    """The pepper from the settings, or from a file.

    Args:
        secret: the setting; None or empty: the file.
        folder: where the file is.
        make: whether a missing file is made, for its owner's eyes only.

    Raises:
        PepperUnusable: not there and not to be made, too short, no text, or the file can be read by others.
        StorageUnwritable: the file cannot be made.
    """
    if secret:
        return Pepper(secret, source="FACEGALLERY_KEY_PEPPER")
    path = folder / FILE_NAME
    try:
        if not path.exists():
            if not make:
                raise PepperUnusable(
                    f"the pepper is missing, which the database's keys and audit log were made with: put {path} back "
                    "from its copy, or set FACEGALLERY_KEY_PEPPER to it; without a copy, see "
                    "`facegallery audit begin-anew --help`"
                )
            if _make(path):
                _log.warning("pepper.made", file=str(path), advice="keep a copy apart from the database's backups")
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text("ascii").strip()
    except UnicodeDecodeError as error:
        raise PepperUnusable(f"{path} holds no pepper; put it back from its copy") from error
    except OSError as error:
        raise StorageUnwritable(
            f"{path} cannot be read or made ({error.strerror}); give FACEGALLERY_KEY_PEPPER or a folder to write to"
        ) from error
    if mode & 0o077 and os.name == "posix":
        raise PepperUnusable(f"{path} can be read by others; run `chmod 600 {path}`")
    return Pepper(text, source=str(path))


def _make(path: Path) -> bool:
    """Write the file beside its place and link it there whole: of two first starts one wins and both read the same.

    Answers whether this one has won.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
        return True
    finally:
        draft.unlink(missing_ok=True)
