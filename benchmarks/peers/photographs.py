# pyright: basic, reportMissingImports=false
"""What the scripts of the sharding peers share: their command line, their files, one image's work.

It is imported by interpreters that know nothing of alexprep; Pillow and OpenCV where it is used.
"""

import argparse
import io
from pathlib import Path

SIZE, QUALITY = 256, 95
MEGABYTES_OF_A_SHARD = 8  # about 250 images


def arguments(about: str) -> argparse.Namespace:
    """SOURCE (class folders), OUT (a folder that does not exist yet), --workers and --codec."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--codec", choices=sorted(CODECS), default="pillow")
    return parser.parse_args()


def files(source: Path) -> list[Path]:
    """Every image of the source, class by class."""
    return sorted(path for path in source.rglob("*") if path.is_file())


def labels(source: Path) -> dict[str, int]:
    """Class folder -> label."""
    return {path.name: label for label, path in enumerate(sorted(source.iterdir()))}


def square(data: bytes):  # noqa: ANN201 - Pillow may be missing here
    """The middle square of the image resized to a shorter side of SIZE, antialiased."""
    from PIL import Image  # noqa: PLC0415 - not every peer has it

    image = Image.open(io.BytesIO(data)).convert("RGB")
    shorter = min(image.size)
    width, height = (round(side * SIZE / shorter) for side in image.size)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image.crop((left, top, left + SIZE, top + SIZE))


def with_pillow(path: Path) -> bytes:
    """The JPEG of that square."""
    out = io.BytesIO()
    square(path.read_bytes()).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def with_opencv(path: Path) -> bytes:
    """The same with OpenCV: INTER_AREA is its antialiased filter."""
    import cv2  # noqa: PLC0415 - not every peer has it
    import numpy as np  # noqa: PLC0415

    cv2.setNumThreads(1)
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    height, width = image.shape[:2]
    shorter = min(height, width)
    height, width = (round(side * SIZE / shorter) for side in (height, width))
    kind = cv2.INTER_AREA if shorter > SIZE else cv2.INTER_LINEAR
    image = cv2.resize(image, (width, height), interpolation=kind)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    image = image[top : top + SIZE, left : left + SIZE]
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def with_pyvips(path: Path) -> bytes:
    """The same with libvips, whose thumbnails decode at a reduced size where they can."""
    import pyvips  # noqa: PLC0415 - not every peer has it

    image = pyvips.Image.thumbnail_buffer(path.read_bytes(), SIZE, height=SIZE, crop="centre")
    image = image.colourspace("srgb") if image.bands != 3 else image
    return image.jpegsave_buffer(Q=QUALITY, subsample_mode="on")


CODECS = {"pillow": with_pillow, "opencv": with_opencv, "pyvips": with_pyvips}
