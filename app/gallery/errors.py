"""What can go wrong with a gallery; the errors of photos and networks stand in `model.errors`."""

from dataclasses import dataclass

from model.errors import FacegalleryError


class InvalidInput(FacegalleryError):
    """A value that the caller sent is not one the service takes."""

    slug = "invalid-input"


class GalleryNotFound(FacegalleryError):
    """No gallery has that name."""

    slug = "gallery-not-found"


class GalleryExists(FacegalleryError):
    """A gallery with that name is there already."""

    slug = "gallery-exists"


class SubjectNotFound(FacegalleryError):
    """The gallery has no subject with that key."""

    slug = "subject-not-found"


class SubjectExists(FacegalleryError):
    """Another subject of the gallery has that key."""

    slug = "subject-exists"


class TemplateNotFound(FacegalleryError):
    """The gallery has no template with that id."""

    slug = "template-not-found"


class ExtractorMismatch(FacegalleryError):
    """The gallery's embeddings come from another extractor than the one that runs."""

    slug = "extractor-mismatch"


class Busy(FacegalleryError):
    """All workers are taken, or the database is locked by another writer: try again."""

    slug = "busy"


class TimedOut(FacegalleryError):
    """The work on the request took longer than it may; nothing was stored."""

    slug = "timed-out"


class DatabaseUnavailable(FacegalleryError):
    """The database does not answer."""

    slug = "database-unavailable"


class DriverMissing(FacegalleryError):
    """The package for that kind of database is not installed."""

    slug = "driver-missing"


class StorageUnwritable(FacegalleryError):
    """The database cannot write: its disk is full or read-only."""

    slug = "storage-unwritable"


class SchemaOutdated(FacegalleryError):
    """The database's tables are not those of this version."""

    slug = "schema-outdated"


class IndexEngineUnusable(FacegalleryError):
    """The engine that the settings choose for the indexes cannot be used as it is set up."""

    slug = "index-engine-unusable"


class SourceUnreadable(FacegalleryError):
    """What should be imported is no folder of people, no table of photos and no archive."""

    slug = "source-unreadable"


class ArchiveDamaged(FacegalleryError):
    """An archive is cut off, changed since it was written, or not what it says it is."""

    slug = "archive-damaged"


class BackupUnusable(FacegalleryError):
    """A database cannot be copied this way, or a file is no copy of one."""

    slug = "backup-unusable"


class DatabaseInUse(FacegalleryError):
    """A service uses the database that was to be replaced."""

    slug = "database-in-use"


class MoveRefused(FacegalleryError):
    """A gallery cannot move to that extractor as things are."""

    slug = "move-refused"


class MasterKeyMissing(FacegalleryError):
    """No master key was given, or not the one that the vault's keys are wrapped by."""

    slug = "master-key-missing"


class KeyUnavailable(FacegalleryError):
    """The vault does not have a subject's key: what is sealed with it cannot be read or added to."""

    slug = "key-unavailable"


class TemplateTampered(FacegalleryError):
    """A stored template is not what was sealed there."""

    slug = "template-tampered"


class FileTampered(FacegalleryError):
    """A sealed file was changed, cut off, or belongs elsewhere."""

    slug = "file-tampered"


class ConsentRequired(FacegalleryError):
    """The gallery takes no subject without a consent that is still good."""

    slug = "consent-required"


class ClockDoubtful(FacegalleryError):
    """Nobody is erased by a clock that is not to be believed."""

    slug = "clock-doubtful"


class ReceiptInvalid(FacegalleryError):
    """A receipt was not signed by this key, or was changed since."""

    slug = "receipt-invalid"


@dataclass(frozen=True, slots=True)
class RefusedPhoto:
    """A photo that could not be enrolled, and why."""

    photo: str
    slug: str
    detail: str


class PhotosRefused(FacegalleryError):
    """None of the photos of an enrolment could be used; nothing was stored.

    Its slug is the common reason where all photos share one, so that a caller with one photo sees that photo's reason.
    """

    slug = "photos-refused"

    def __init__(self, refused: tuple[RefusedPhoto, ...]) -> None:
        super().__init__("; ".join(f"{photo.photo}: {photo.detail}" for photo in refused), part="images")
        self.refused = refused
        reasons = {photo.slug for photo in refused}
        self.reason = reasons.pop() if len(reasons) == 1 else self.slug
