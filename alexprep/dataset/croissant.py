"""croissant.json: a data set in MLCommons' Croissant 1.1, for tools that know no WebDataset.

https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html. Each tar is a FileObject with its
sha256. A split has two FileSets in its tars, the images and the labels, and a RecordSet that joins
them by key: mlcroissant joins two sources and no more, so that KEY.json is not in the records.
"""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from alexprep.dataset.checksums import shard_digests
from pipelines.format import Manifest

CROISSANT = "croissant.json"
VERSION = "http://mlcommons.org/croissant/1.1"
SPLITS = {"train": "cr:TrainingSplit", "validation": "cr:ValidationSplit", "test": "cr:TestSplit"}
MAX_NAMED = 100


def croissant(
    manifest: Manifest,
    publication: Mapping[str, str],
    *,
    description: str,
    license: str,
    citation: str | None,
) -> str:
    """The text of croissant.json.

    `publication` has version and, where they are known, author, url and published.
    """
    data: dict[str, Any] = {
        "@context": _context(),
        "@type": "sc:Dataset",
        "conformsTo": VERSION,
        "name": manifest.name,
        "description": description,
        "license": _license_url(license),
        "version": publication["version"],
    }
    if "author" in publication:
        data["creator"] = {"@type": "sc:Person", "name": publication["author"]}
    for name, field in (("url", "url"), ("datePublished", "published")):
        if field in publication:
            data[name] = publication[field]
    if citation:
        data["citeAs"] = citation
    data |= _provenance(manifest)
    data["distribution"] = [entry for split in manifest.splits for entry in _files(manifest, split)]
    data["recordSet"] = [
        _classes(manifest),
        _splits(manifest),
        *(entry for split in manifest.splits for entry in _records(split)),
    ]
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def _context() -> dict[str, Any]:
    """As section "Context" of the specification prints it."""
    return json.loads(files("alexprep").joinpath("data/croissant_context.json").read_text("utf-8"))


def read_publication(text: str) -> dict[str, str]:
    """The fields of a publication that a croissant.json of ours has; nothing from other texts."""
    try:
        data = msgspec.json.decode(text, type=_Publication)
    except (ValueError, RecursionError):
        return {}
    fields = msgspec.structs.asdict(data) | {"author": data.creator.get("name")}
    del fields["creator"]
    # The reverse of `_license_url`.
    if match := re.fullmatch(r"https://creativecommons\.org/licenses/(.+)/(.+)/", data.license):
        fields["license"] = f"cc-{match[1]}-{match[2]}"
    elif data.license.startswith("https://creativecommons.org/publicdomain/zero/"):
        fields["license"] = "cc0-1.0"
    elif match := re.fullmatch(r"https://choosealicense\.com/licenses/(.+)/", data.license):
        fields["license"] = match[1].replace("odbl-1.0", "odbl")
    return {name: value for name, value in fields.items() if value}


class _Publication(msgspec.Struct):
    """What `read_publication` reads."""

    description: str
    license: str
    version: str
    creator: dict[str, str] = {}
    url: str | None = None
    published: str | None = msgspec.field(name="datePublished", default=None)


def _license_url(license: str) -> str:
    """The address of a license that has one, as Croissant recommends."""
    if common := re.fullmatch(r"cc-(by(?:-nc)?(?:-sa|-nd)?)-(\d\.\d)", license):
        return f"https://creativecommons.org/licenses/{common[1]}/{common[2]}/"
    if license == "cc0-1.0":
        return "https://creativecommons.org/publicdomain/zero/1.0/"
    if license in ("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "odbl", "gpl-3.0"):
        return f"https://choosealicense.com/licenses/{license.replace('odbl', 'odbl-1.0')}/"
    return license


def settings(manifest: Manifest) -> dict[str, str]:
    """What the bytes of the shards follow from besides the source, by name."""
    config = {name: value for name, value in manifest.config.items() if name != "classes"}
    return {f"codec: {name}": value for name, value in sorted(manifest.codec.items())} | {
        f"setting: {name}": json.dumps(value) for name, value in sorted(config.items())
    }


def _provenance(manifest: Manifest) -> dict[str, Any]:
    """Source, program, codec, settings and what was repaired or skipped, in PROV-O."""
    source = manifest.source
    values: dict[str, str | int] = {**settings(manifest)}
    values |= {f"images repaired: {fix}": count for fix, count in sorted(manifest.fixes.items())}
    values |= {
        f"duplicate files: {kind}": count for kind, count in sorted(manifest.duplicates.items())
    }
    # By name up to a number: there may be as many as the source has files.
    values["files skipped"] = len(manifest.left_out)
    for number, entry in enumerate(manifest.left_out[:MAX_NAMED], start=1):
        values[f"file skipped: {number}"] = f"{entry.path}: {entry.reason}"
    for number, warning in enumerate(manifest.warnings, start=1):
        values[f"warning: {number}"] = warning
    return {
        "prov:wasDerivedFrom": {
            "@type": "prov:Entity",
            "@id": f"urn:sha256:{source.get('sha256', '')}",
            "prov:label": f"{source.get('name', '')} ({source.get('kind', '')})",
        },
        "prov:wasGeneratedBy": {
            "@type": "prov:Activity",
            "prov:label": "alexprep shard",
            "prov:wasAssociatedWith": {
                "@type": "prov:SoftwareAgent",
                "prov:label": f"alexprep {manifest.alexprep}",
            },
            "additionalProperty": [
                {"@type": "sc:PropertyValue", "propertyID": name, "value": value}
                for name, value in values.items()
            ],
        },
    }


def _files(manifest: Manifest, split: str) -> list[dict[str, Any]]:
    """The tars of a split, and the images and labels in them."""
    shards = manifest.splits[split].shards
    return [
        *(
            {
                "@type": "cr:FileObject",
                "@id": shard.name,
                "name": shard.name,
                "contentUrl": shard.name,
                "contentSize": f"{shard.bytes} B",
                "encodingFormat": "application/x-tar",
                "sha256": shard.sha256,
            }
            for shard in shards
        ),
        *(
            {
                "@type": "cr:FileSet",
                "@id": f"{split}-{suffix}",
                "name": f"{split}-{suffix}",
                "containedIn": [{"@id": shard.name} for shard in shards],
                "encodingFormat": encoding,
                "includes": f"*.{suffix}",
            }
            for suffix, encoding in (("jpg", "image/jpeg"), ("cls", "text/plain"))
        ),
    ]


def _classes(manifest: Manifest) -> dict[str, Any]:
    data = [
        {"classes/label": label, "classes/wnid": wnid, "classes/name": names}
        for label, (wnid, names) in enumerate(manifest.classes)
    ]
    fields = [("label", "sc:Integer"), ("wnid", "sc:Text"), ("name", "sc:Text")]
    fields = [_field(f"classes/{name}", kind) for name, kind in fields]
    return _records_of("classes", "label", fields, dataType="sc:Enumeration") | {"data": data}


def _splits(manifest: Manifest) -> dict[str, Any]:
    data = [
        {"splits/name": split, "splits/url": SPLITS.get(split, "cr:Split")}
        for split in manifest.splits
    ]
    fields = [_field("splits/name", "sc:Text"), _field("splits/url", "sc:URL")]
    return _records_of("splits", "name", fields, dataType="cr:Split") | {"data": data}


def _records(split: str) -> list[dict[str, Any]]:
    """The labels of a split, and its images with them."""
    labels = f"{split}_labels"
    label_fields = [
        _field(f"{labels}/key", "sc:Text", _key(f"{split}-cls")),
        _field(f"{labels}/label", "sc:Integer", _content(f"{split}-cls")),
    ]
    label = {"field": {"@id": f"{labels}/label"}}
    fields = [
        _field(f"{split}/key", "sc:Text", _key(f"{split}-jpg"))
        | {"references": {"field": {"@id": f"{labels}/key"}}},
        _field(f"{split}/split", "sc:Text")
        | {"value": split, "references": {"field": {"@id": "splits/name"}}},
        _field(f"{split}/image", "sc:ImageObject", _content(f"{split}-jpg")),
        _field(f"{split}/label", ["sc:Integer", "cr:Label"], label),
    ]
    description = "Every image of the split. The label counts from 0, as in classes."
    return [
        _records_of(labels, "key", label_fields),
        _records_of(split, "key", fields, description=description),
    ]


def _records_of(
    ident: str, key: str, fields: list[dict[str, Any]], **properties: str
) -> dict[str, Any]:
    head = {"@type": "cr:RecordSet", "@id": ident, "name": ident}
    return head | properties | {"key": {"@id": f"{ident}/{key}"}, "field": fields}


def _field(
    ident: str, kind: str | list[str], source: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": ident,
        "name": ident.rpartition("/")[2],
        "dataType": kind,
    }
    return field | ({} if source is None else {"source": source})


def _key(file_set: str) -> dict[str, Any]:
    # A key has no dot. What follows it is optional: mlcroissant applies this to keys once more.
    return {
        "fileSet": {"@id": file_set},
        "extract": {"fileProperty": "filename"},
        "transform": {"regex": r"^([^.]+)"},
    }


def _content(file_set: str) -> dict[str, Any]:
    return {"fileSet": {"@id": file_set}, "extract": {"fileProperty": "content"}}


class _FileObject(msgspec.Struct):
    """What verify reads of an entry of `distribution`."""

    id: str = msgspec.field(name="@id", default="")
    sha256: str = ""


class _Distribution(msgspec.Struct):
    distribution: list[_FileObject]


def croissant_faults(path: Path, manifest: Manifest) -> list[str]:
    """Where croissant.json, if there is one, does not have the hashes of the manifest."""
    if not path.is_file():
        return []
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=_Distribution).distribution
    except (ValueError, RecursionError) as error:
        return [f"{path} is damaged ({error})"]
    hashes = {entry.id: entry.sha256 for entry in entries if entry.sha256}
    return [
        f"{path} says sha256 {hashes.get(name, 'nothing')} of {name}, the manifest says {digest}"
        for name, digest in shard_digests(manifest).items()
        if hashes.get(name) != digest
    ]
