"""Make docs/images/astronaut.png: enroll a mirrored copy of the portrait, identify the portrait, draw the answer.

    python benchmarks/picture.py [OUTPUT]

Photo: Eileen Collins, NASA, public domain; it comes with scikit-image.
"""

import argparse
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import skimage.data
from PIL import Image, ImageDraw, ImageFont, ImageOps
from serving import running_service

OUTPUT = Path(__file__).parent.parent / "docs" / "images" / "astronaut.png"
SCALE = 1.5  # the portrait has 512 × 512 pixels; letters want more
COLOUR, INK = (64, 224, 128), (10, 20, 14)
CREDIT = "Photo: NASA, public domain"


def _png(image: Image.Image) -> bytes:
    data = BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def recognise(portrait: Image.Image, subject: str) -> dict[str, Any]:
    """Enroll the mirrored portrait as a subject and identify the portrait itself, over HTTP."""
    with running_service() as url, httpx.Client(base_url=url, timeout=60) as http:
        mirrored = ("mirrored.png", _png(ImageOps.mirror(portrait)))
        http.post("/enroll", data={"subject": subject}, files={"images": mirrored}).raise_for_status()
        answer = http.post("/identify", files={"image": ("portrait.png", _png(portrait))}).raise_for_status()
        body: dict[str, Any] = answer.json()
        return body


def draw(portrait: Image.Image, answer: dict[str, Any]) -> Image.Image:
    """The portrait with box, landmarks, name and distance of every face."""
    picture = portrait.resize((round(portrait.width * SCALE), round(portrait.height * SCALE)), Image.Resampling.LANCZOS)
    canvas = ImageDraw.Draw(picture)
    for face in answer["faces"]:
        box = face["box"]
        left, top = box["x"] * SCALE, box["y"] * SCALE
        right, bottom = left + box["width"] * SCALE, top + box["height"] * SCALE
        canvas.rectangle((left, top, right, bottom), outline=COLOUR, width=4)
        for point in face["landmarks"].values():
            x, y = point["x"] * SCALE, point["y"] * SCALE
            canvas.ellipse((x - 5, y - 5, x + 5, y + 5), fill=COLOUR, outline=INK, width=1)
        identity = face["identity"]
        name = identity["subject"] if identity else "unknown"
        reason = f"distance {identity['distance']:.2f}, limit {answer['threshold']:.2f}" if identity else ""
        _label(canvas, (left - 2, bottom + 4), [(name, 30), (reason, 20)])
    _label(canvas, (0, picture.height - 26), [(CREDIT, 16)])
    return picture


def _label(canvas: ImageDraw.ImageDraw, corner: tuple[float, float], lines: list[tuple[str, int]]) -> None:
    x, y = corner
    fonts = [ImageFont.load_default(size=size) for _, size in lines]
    width = max(canvas.textlength(text, font=font) for (text, _), font in zip(lines, fonts, strict=True))
    height = sum(1.3 * size for _, size in lines)
    canvas.rectangle((x, y, x + width + 16, y + height + 6), fill=COLOUR)
    y += 2
    for (text, size), font in zip(lines, fonts, strict=True):
        canvas.text((x + 8, y), text, fill=INK, font=font)
        y += 1.3 * size


def main() -> None:
    """Make the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, nargs="?", default=OUTPUT, help="the picture, a .png file")
    output = parser.parse_args().output
    portrait = Image.fromarray(skimage.data.astronaut())
    picture = draw(portrait, recognise(portrait, "Eileen Collins"))
    output.parent.mkdir(parents=True, exist_ok=True)
    # A palette keeps the file small; dithering hides it.
    picture.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(output, optimize=True)


if __name__ == "__main__":
    main()
