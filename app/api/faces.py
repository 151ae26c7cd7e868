"""POST /detect and POST /embed: the first steps alone."""

from fastapi import APIRouter

from app.access.keys import Scope
from app.api.authorisation import needs
from app.api.dependencies import FORM_LIMITS, Image, MaxFaces, Service, ServiceSettings, found_face, read_photo
from app.api.photo_threads import reads_photos
from app.api.problems import error_responses
from app.api.schemas.faces import Detection, EmbeddedFace, Embedding
from app.gallery.errors import StorageUnwritable
from model.errors import ImageTooLarge, ModelFileError, UnsupportedImage

_OF_PHOTOS = (UnsupportedImage, ImageTooLarge, StorageUnwritable)

router = APIRouter(
    tags=["steps"],
    responses=error_responses(*_OF_PHOTOS),
    dependencies=[needs(Scope.IDENTIFY)],
    form_limits=FORM_LIMITS,
)


@router.post("/detect", summary="Find the faces of a photo")
@reads_photos
def detect(service: Service, settings: ServiceSettings, image: Image, max_faces: MaxFaces = 20) -> Detection:
    """Boxes, landmarks, scores and quality of the faces, largest first."""
    faces = service.detect(read_photo(image, settings), max_faces=max_faces)
    return Detection(extractor=service.extractor, faces=[found_face(face) for face in faces])


@router.post("/embed", summary="Embed the faces of a photo", responses=error_responses(*_OF_PHOTOS, ModelFileError))
@reads_photos
def embed(service: Service, settings: ServiceSettings, image: Image, max_faces: MaxFaces = 20) -> Embedding:
    """As `/detect`, with the embedding of every face."""
    faces, embeddings = service.embed(read_photo(image, settings), max_faces=max_faces)
    return Embedding(
        extractor=service.extractor,
        faces=[
            EmbeddedFace(**dict(found_face(face)), embedding=embedding.tolist())
            for face, embedding in zip(faces, embeddings, strict=True)
        ],
    )
