"""What a file is, by its name and its first bytes: an image, litter, or something to ask about."""

from typing import NamedTuple

HEAD_BYTES = 32
# A JPEG of 2**27 pixels has no more, nor has any other format of 2**25, the most that are decoded.
LARGEST_FILE = 2**29
# What file managers, thumbnailers and disks leave behind; nobody means these as images.
LITTER = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"),
        *("__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "lost+found"),
        *("system volume information", "cvs"),
    }
)
# A stream that Windows attaches to downloads, which WSL and some archivers turn into a file.
ATTACHED = ":zone.identifier"
UNFINISHED = (b".part", b".partial", b".crdownload", b".download", b".aria2", b".tmp")
ARCHIVES = (b".tar", b".zip", b".gz", b".tgz", b".bz2", b".xz", b".zst", b".7z", b".rar")
# Named like an image, so not opened when listed. The codec says which of them it reads.
IMAGE_ENDINGS = frozenset(
    {
        *(b"jpg", b"jpeg", b"jpe", b"jfif", b"jif", b"png", b"apng", b"gif", b"bmp", b"dib"),
        *(b"tif", b"tiff", b"webp", b"ppm", b"pgm", b"pbm", b"pnm", b"avif", b"heic", b"heif"),
        *(b"jxl", b"jp2", b"ico", b"svg", b"psd"),
    }
)
MAGIC = (
    *(b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"\xff\x0a", b"\0\0\0\x0cJXL ", b"\0\0\0\x0cjP  ", b"\0\0\1\0", b"8BPS", b"<svg"),
)
LFS_POINTER = b"version https://git-lfs"


class Stray(NamedTuple):
    """A file of the source that cannot be a sample, and why; "" where it could not be hashed."""

    path: str
    reason: str
    sha256: str = ""


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or left behind by a program that nobody asked."""
    lower = name.lower()
    return name.startswith(".") or lower in LITTER or lower.endswith(ATTACHED)


def has_image_ending(name: bytes) -> bool:
    """Whether a path ends like one of an image; its content may be anything."""
    return name[name.rfind(b".") + 1 :].lower() in IMAGE_ENDINGS


def too_large(size: int) -> str | None:
    """Why a file of so many bytes is not read into memory; None if it is."""
    return f"has {size:,} bytes, more than any image" if size > LARGEST_FILE else None


def objection(head: bytes, name: bytes = b"") -> str | None:
    """Why a file that begins so is no image, as the end of a sentence; None if it may be one."""
    if name.lower().endswith(UNFINISHED):
        return "is an unfinished download"
    if not head:
        return "is empty"
    if name.lower().endswith(ARCHIVES):
        return "is an archive: unpack it, or give the folder that it is in"
    if head.startswith(LFS_POINTER):
        return "is a Git LFS pointer, not the file itself: run `git lfs pull`"
    portable_map = head[:1] == b"P" and head[1:2] in b"0123456fy"
    container = head[4:8] == b"ftyp" or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
    if head.startswith(MAGIC) or portable_map or container:
        return None
    return f"is not an image: it begins with {head[:16]!r}"


def stem(name: bytes) -> bytes:
    """A file's name without folders and without its last ending."""
    base = name[name.rfind(b"/") + 1 :]
    dot = base.rfind(b".")
    return base[:dot] if dot > 0 else base


def is_side_car(name: bytes, images: set[bytes]) -> bool:
    """Whether a file describes an image: cat.xml or cat.jpg.xml next to cat.jpg.

    `images` holds the paths of images with and without their last ending.
    """
    head, slash, base = name.rpartition(b"/")
    return head + slash + stem(base) in images


def both_names(name: bytes) -> tuple[bytes, bytes]:
    """A path with its ending and without, for `is_side_car`."""
    head, slash, base = name.rpartition(b"/")
    return name, head + slash + stem(base)
