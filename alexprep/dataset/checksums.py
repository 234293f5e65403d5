"""SHA256SUMS: the hash of every file of a data set but its card, as `sha256sum -c` reads it."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from pipelines.atomic import write_whole
from pipelines.format import MANIFEST, Manifest
from pipelines.imagestats import stats_paths

SUMS = "SHA256SUMS"


def checksums(digests: Mapping[str, str]) -> str:
    """SHA256SUMS, as `sha256sum -c` reads it."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def parse_checksums(text: str) -> dict[str, str]:
    """SHA-256 by name; ValueError with the line that is none."""
    digests: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if match is None:
            raise ValueError(f"line {number}: expected a SHA-256 and a name, got {line[:80]!r}")
        digests[match[2]] = match[1]
    return digests


def shard_digests(manifest: Manifest) -> dict[str, str]:
    """SHA-256 of each tar, by its name."""
    return {shard.name: shard.sha256 for shard in manifest.shards}


def digests(root: Path, manifest: Manifest) -> dict[str, str]:
    """What SHA256SUMS should say: of shards as the manifest does, of other files as it did.

    A file is hashed only if it is new or one of the statistics, which are the files that change:
    hashing all again would approve of damage.
    """
    try:
        recorded = parse_checksums((root / SUMS).read_text())
    except (OSError, ValueError):
        recorded = {}
    known = shard_digests(manifest)
    names = [MANIFEST, "synsets.txt", "_info.json", *(f"wids-{s}.json" for s in manifest.splits)]
    names += [shard.index for shard in manifest.shards]
    for name in names:
        if name in recorded:
            known[name] = recorded[name]
        elif (root / name).is_file():
            known[name] = hash_file(root / name)
    for split in manifest.splits:
        paths = stats_paths(root, split)
        for path in (paths.json, paths.npz, paths.png):
            if path.is_file():
                known[path.name] = hash_file(path)
    return known


def write_checksums(root: Path, manifest: Manifest) -> None:
    """Write SHA256SUMS anew, or for the first time."""
    write_whole(root / SUMS, checksums(digests(root, manifest)).encode())


def checksum_faults(root: Path, manifest: Manifest) -> list[str]:
    """What differs from SHA256SUMS, if there is one; tars are compared through the manifest."""
    path = root / SUMS
    if not path.is_file():
        return []
    shards = shard_digests(manifest)
    try:
        recorded = parse_checksums(path.read_text(errors="replace"))
    except ValueError as error:
        return [f"{path}, {error}"]
    faults = [f"{path} has no line for {name}" for name in shards if name not in recorded]
    for name, digest in recorded.items():
        if name.startswith("/") or ".." in name.split("/"):
            faults.append(f"{path} names {name!r}, which is not in the data set")
            continue
        actual = shards.get(name) or _hash_or_reason(root / name)
        if actual != digest:
            faults.append(f"{root / name}: sha256 is {actual}, {SUMS} says {digest}")
    return faults


def checksum_warnings(root: Path) -> list[str]:
    """A line for a data set without SHA256SUMS, as the first release made them."""
    if (root / SUMS).is_file():
        return []
    return [
        f"{root / SUMS} is missing, so that the name, source, settings and codec in {MANIFEST} "
        f"cannot be checked. Write it with `alexprep card {root}`."
    ]


def _hash_or_reason(path: Path) -> str:
    try:
        return hash_file(path) if path.is_file() else "missing"
    except OSError as error:  # a name that is too long, or a bad sector
        return f"not to be had ({error.strerror})"


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
