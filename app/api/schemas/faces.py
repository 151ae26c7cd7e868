"""Faces of a photo, found and embedded."""

from pydantic import BaseModel, Field

from model.quality import Quality as FaceQuality

ExtractorField = Field(
    description="identity of the extractor, name and digest; only embeddings of one extractor can be compared",
    examples=["sface@29f1db2ece7b"],
)


class Point(BaseModel):
    """A place in the photo, in pixels from its upper left corner."""

    x: float = Field(description="to the right")
    y: float = Field(description="down")


class Box(BaseModel):
    """A rectangle in the photo, in pixels; it may go beyond the edges."""

    x: float = Field(description="left side")
    y: float = Field(description="upper side")
    width: float = Field(description="above 0")
    height: float = Field(description="above 0")


class Landmarks(BaseModel):
    """Five points; right and left are the person's own."""

    right_eye: Point
    left_eye: Point
    nose: Point
    right_mouth: Point
    left_mouth: Point


class Quality(BaseModel):
    """How well a face can be seen."""

    detection_score: float = Field(description="0 to 1")
    face_size: float = Field(description="shorter side of the box in pixels")
    sharpness: float = Field(description="variance of the Laplacian of the aligned crop")
    yaw: float = Field(description="degrees sideways, estimated from the landmarks")
    pitch: float = Field(description="degrees up or down, estimated from the landmarks")
    roll: float = Field(description="degrees of tilt, from the eyes")

    @classmethod
    def of(cls, quality: FaceQuality) -> "Quality":
        """The quality as an answer shows it."""
        return cls(
            detection_score=quality.detection_score,
            face_size=quality.face_size,
            sharpness=quality.sharpness,
            yaw=quality.yaw,
            pitch=quality.pitch,
            roll=quality.roll,
        )


class FoundFace(BaseModel):
    """A face in a photo."""

    box: Box
    landmarks: Landmarks
    score: float = Field(description="the detector's confidence, 0 to 1")
    quality: Quality


class Detection(BaseModel):
    """Faces of a photo, largest first."""

    extractor: str = ExtractorField
    faces: list[FoundFace] = Field(description="none where no face was found")


class EmbeddedFace(FoundFace):
    """A face with its embedding."""

    embedding: list[float] = Field(
        description="of length 1 (L2-normalised); as many numbers as the extractor gives, 128 for `sface`"
    )


class Embedding(BaseModel):
    """Faces of a photo with their embeddings, largest first."""

    extractor: str = ExtractorField
    faces: list[EmbeddedFace] = Field(description="none where no face was found")
