"""The longest time and the most memory that one image takes, of the files that are made for it.

    python benchmarks/decoders.py [--only NAME]

Each file is as large as `alexprep shard` reads its format, or larger, and is encoded in a process
of its own. Printed are its bytes, the seconds of a core, the highest memory (VmHWM) beyond that of
the idle process, and what became of it. The exit code is 1 if one took more than SECONDS or MEMORY.
"""

import argparse
import io
import os
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from alexprep.dataset.codec import MAX_PIXELS, MAX_SCANS, MAX_WHOLE, ImageError, encode

SECONDS = 20.0
MEMORY = 640 << 20
WHOLE = 5792, 5792  # MAX_WHOLE pixels
LARGEST = 11584, 11584  # MAX_PIXELS


def jpeg(size: tuple[int, int], colours: str = "RGB") -> bytes:
    """A baseline JPEG of one colour."""
    shape = (*size[::-1], {"GRAY": 1, "RGB": 3, "CMYK": 4}[colours])
    pixels = np.full(shape, 90, np.uint8)
    return simplejpeg.encode_jpeg(pixels, 90, colours, "444" if colours == "CMYK" else "420")


def scans(size: tuple[int, int], count: int) -> bytes:
    """A progressive JPEG whose last scan, a few bytes, is repeated."""
    data = io.BytesIO()
    Image.new("RGB", size, (90, 60, 30)).save(data, "JPEG", progressive=True)
    body = data.getvalue().removesuffix(b"\xff\xd9")
    last = body[body.rindex(b"\xff\xda") :]
    return body + last * (count - body.count(b"\xff\xda")) + b"\xff\xd9"


def png(
    size: tuple[int, int], kind: int, channels: int, depth: int = 8, extra: bytes = b""
) -> bytes:
    """Kilobytes that unpack to pixels of zeros."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    packer = zlib.compressobj(9)
    row = bytes(1 + size[0] * channels * depth // 8)
    body = b"".join(packer.compress(row) for _ in range(size[1])) + packer.flush()
    head = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + extra
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def palette_png(size: tuple[int, int]) -> bytes:
    """A palette with transparency, as web pages have it."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    return png(size, 3, 1, extra=chunk(b"PLTE", bytes(768)) + chunk(b"tRNS", bytes(256)))


def pillow(mode: str, kind: str, size: tuple[int, int] = WHOLE) -> bytes:
    """A file that Pillow writes."""
    data = io.BytesIO()
    Image.new(mode, size).save(data, kind)
    return data.getvalue()


def webp(size: tuple[int, int]) -> bytes:
    """A lossless WebP of one colour."""
    import imagecodecs  # noqa: PLC0415 - slow to import

    return imagecodecs.webp_encode(np.zeros((*size[::-1], 3), np.uint8), lossless=True)


def tiff(size: tuple[int, int]) -> bytes:
    """A compressed TIFF with alpha."""
    import imagecodecs  # noqa: PLC0415 - slow to import

    return imagecodecs.tiff_encode(np.zeros((*size[::-1], 4), np.uint8), compression="deflate")


FILES: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: jpeg(WHOLE),
    "JPEG, the largest": lambda: jpeg(LARGEST),
    "gray JPEG, the largest": lambda: jpeg(LARGEST, "GRAY"),
    "CMYK JPEG": lambda: jpeg(WHOLE, "CMYK"),
    "CMYK JPEG, the largest": lambda: jpeg(LARGEST, "CMYK"),
    "progressive JPEG of 100 scans": lambda: scans(WHOLE, MAX_SCANS),
    "progressive JPEG of 25 scans, the largest": lambda: scans(LARGEST, MAX_SCANS // 4),
    "progressive JPEG of 1,000 scans": lambda: scans((4000, 4000), 1000),
    "progressive JPEG, damaged": lambda: scans(LARGEST, MAX_SCANS // 4)[:-1000],
    "RGB PNG": lambda: png(WHOLE, 2, 3),
    "RGBA PNG": lambda: png(WHOLE, 6, 4),
    "RGBA PNG of 16 bits": lambda: png(WHOLE, 6, 4, 16),
    "palette PNG with transparency": lambda: palette_png(WHOLE),
    "RGB PNG, twice too large": lambda: png((5792, 11584), 2, 3),
    "GIF": lambda: pillow("P", "GIF"),
    "BMP": lambda: pillow("RGB", "BMP"),
    "PPM": lambda: pillow("RGB", "PPM"),
    "TIFF": lambda: pillow("RGBA", "TIFF"),
    "CMYK TIFF": lambda: pillow("CMYK", "TIFF"),
    "deflate TIFF": lambda: tiff(WHOLE),
    "WebP": lambda: webp((8192, 4096)),
}


def status(name: str) -> int:
    """Bytes of a field of /proc/self/status."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[name].split()[0]) << 10


def measure(data: bytes) -> tuple[float, int, str]:
    """Seconds, highest memory beyond that of the idle process, and the outcome."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        before, start = status("VmRSS"), time.process_time()
        try:
            encode(data, size=256, quality=95)
            result = "read"
        except ImageError as error:
            result = f"refused: {error}"
        seconds = time.process_time() - start
        os.write(writer, f"{seconds}|{status('VmHWM') - before}|{result[:80]}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        seconds, memory, result = lines.read().split("|", 2)
    os.waitpid(pid, 0)
    return float(seconds), int(memory), result


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", default=[])
    options = parser.parse_args()
    assert WHOLE[0] * WHOLE[1] <= MAX_WHOLE and LARGEST[0] * LARGEST[1] <= MAX_PIXELS  # noqa: PT018
    small = jpeg((64, 64))
    encode(small, size=32, quality=95)  # what is imported by the first image
    worst = False
    sys.stdout.write("| file | KB | seconds | MiB | outcome |\n| --- | --- | --- | --- | --- |\n")
    for name in options.only or FILES:
        data = FILES[name]()
        seconds, memory, result = measure(data)
        worst |= seconds > SECONDS or memory > MEMORY
        row = (name, f"{len(data) / 1000:,.0f}", f"{seconds:.1f}", f"{memory / 2**20:,.0f}", result)
        sys.stdout.write(f"| {' | '.join(row)} |\n")
        sys.stdout.flush()
    return 1 if worst else 0


if __name__ == "__main__":
    raise SystemExit(main())
