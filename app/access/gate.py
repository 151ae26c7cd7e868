"""Gate: from what a call carries to who calls."""

import threading
from datetime import datetime

import structlog

from app.access.caller import Caller
from app.access.errors import Unauthorized
from app.access.key_store import KeyStore
from app.access.keys import ApiKey, KeyHasher, key_id_of
from app.access.rate_limits import RateLimits, owner_of_address
from app.gallery.sql.failures import in_full
from app.gallery.tables import now
from model.errors import FacegalleryError

_log = structlog.get_logger()


class Gate:
    """Admits calls, by key or, where there are no keys, everybody; with a limit of calls where one is given.

    Args:
        keys: the keys; None: everybody may do everything.
        hasher: compares keys.
        limits: of calls by address and by key; None: no limit.
    """

    def __init__(self, keys: KeyStore | None, hasher: KeyHasher, limits: RateLimits | None) -> None:
        self.keys = keys
        self._hasher = hasher
        self._limits = limits
        self._used: dict[str, datetime] = {}
        self._used_lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for."""
        return self.keys is None

    @property
    def waits(self) -> bool:
        """Whether `admit` asks a database."""
        return self.keys is not None or self._limits is not None

    def admit(self, authorization: str | None, *, address: str, request_id: str) -> Caller:
        """Who calls.

        Args:
            authorization: the header of that name.
            address: where the call comes from.
            request_id: of this call.

        Raises:
            Unauthorized: no key, or none that is valid now.
            TooManyCalls: the address or the key has no calls left.
            Busy, DatabaseUnavailable: as named.
        """
        if self._limits is not None:
            self._limits.take(owner_of_address(address))
        if self.keys is None:
            return Caller("open", address=address, request_id=request_id)
        key = self._valid_key(self.keys, authorization)
        if self._limits is not None:
            self._limits.take(f"key:{key.id}")
        self._mark_used(self.keys, key)
        return Caller(key.id, key.scopes, key.galleries, address, request_id)

    def close(self) -> None:
        """Give all connections back."""
        if self._limits is not None:
            self._limits.close()

    def _valid_key(self, keys: KeyStore, authorization: str | None) -> ApiKey:
        scheme, _, text = (authorization or "").strip().partition(" ")
        text = text.strip()
        if scheme.lower() != "bearer" or not text:
            raise Unauthorized("send a key in the header `Authorization: Bearer fg_…`", given=False)
        key_id, at = key_id_of(text), now()
        stored = None if key_id is None else keys.find(key_id)
        if not self._hasher.matches(text, stored, at=at) or stored is None:
            raise Unauthorized("that is no valid key of this service", given=True)
        # Who has come so far knows the secret, and may know what became of the key.
        key = stored.key
        if key.revoked_at is not None:
            raise Unauthorized("this key was revoked", given=True)
        if key.expires_at is not None and key.expires_at <= at:
            raise Unauthorized("this key has expired", given=True)
        return key

    def _mark_used(self, keys: KeyStore, key: ApiKey) -> None:
        """Note the use of a key; a database that cannot be written is no reason to refuse a call that only reads."""
        at = now()
        if not keys.is_unwritten(key, at):
            return
        with self._used_lock:  # one attempt a minute, also while the database cannot be written
            before = self._used.get(key.id)
            if before is not None and (at - before).total_seconds() < 60:
                return
            self._used[key.id] = at
        try:
            keys.used(key, at)
        except FacegalleryError as error:
            _log.warning("key.use_not_written", key=key.id, reason=in_full(error))
