"""Whether a gallery belongs to the extractor that runs."""

from app.gallery.errors import ExtractorMismatch
from app.gallery.records import Gallery


def check_extractor(gallery: Gallery, extractor: str) -> None:
    """Refuse to mix embeddings of two extractors.

    Raises:
        ExtractorMismatch: the gallery belongs to another extractor.
    """
    if gallery.extractor != extractor:
        raise ExtractorMismatch(
            f"gallery {gallery.name!r} belongs to extractor {gallery.extractor}, but {extractor} is running; "
            "run the service with that extractor, move the gallery with `facegallery reembed`, or enroll the photos "
            "again into a new gallery",
            part="gallery",
        )
