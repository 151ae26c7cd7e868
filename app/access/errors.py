"""Why a call is not admitted, and what can be wrong with keys, the pepper and the audit log."""

from model.errors import FacegalleryError


class Unauthorized(FacegalleryError):
    """The call carries no key that is valid now.

    Args:
        detail: a sentence that says what to do.
        given: whether there was a key at all.
    """

    slug = "unauthorized"

    def __init__(self, detail: str, *, given: bool) -> None:
        super().__init__(detail)
        self.given = given


class Forbidden(FacegalleryError):
    """The key is valid, but not for this."""

    slug = "forbidden"


class KeyInAddress(FacegalleryError):
    """A key stands in the address of the call, where logs and histories keep it."""

    slug = "key-in-address"


class TooManyCalls(FacegalleryError):
    """The key or the address has no calls left for now.

    Args:
        detail: a sentence that says what to do.
        retry_after: whole seconds until the next call is admitted.
    """

    slug = "too-many-calls"

    def __init__(self, detail: str, *, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class AuditBroken(FacegalleryError):
    """The audit log was tampered with, or another pepper sealed it: nothing is added to it."""

    slug = "audit-broken"


class KeyNotFound(FacegalleryError):
    """No key has that id."""

    slug = "key-not-found"


class PepperUnusable(FacegalleryError):
    """The pepper is missing, too short, readable by others, or not the one that the keys were hashed with."""

    slug = "pepper-unusable"


class OpenToTheWorld(FacegalleryError):
    """The service would answer everybody on an address that others can reach."""

    slug = "open-to-the-world"


class AddressUnusable(FacegalleryError):
    """The service cannot listen on its address."""

    slug = "address-unusable"


class TlsUnusable(FacegalleryError):
    """The files of the certificate and its key are missing, or are not that."""

    slug = "tls-unusable"
