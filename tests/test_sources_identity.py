"""What a source is known by in a manifest, pinned: data sets made from it stay what they were."""

import pytest
from archives import (
    WNIDS,
    write_archives,
    write_extracted,
    write_kaggle,
    write_parquet,
    write_sorted,
)

from alexprep.dataset.shard_plan import ShardConfig, make_plan
from alexprep.sources.find import find_source
from alexprep.sources.listing import SourceOptions

# Source.identity()["sha256"], and the sum of place times number over the order of train, of commit
# edc7d49 (2026-11-21). A data set made then is resumed, repaired and rebuilt by these.
FOUR = ("c303185f96a78694ad7ef4e2d66a78605cdd1b8ec8d7e9128c1f9d976ef91c6d", 5442)
PINNED = {
    "archives": FOUR,
    "extracted": FOUR,
    "sorted": FOUR,
    "kaggle": FOUR,
    "parquet": ("a43981398bb538518adc6a430405bd702bf25b2ee4f4b0d99a9e6de4aec796da", 5442),
    "classes": ("cb5f89ff799c8926b58b033cf9de4ad4672ad4c840b0e23e4091551b741cac71", 5442),
}
TRAIN = {
    f"{wnid}_{number}.JPEG": b"\xff\xd8" * (number + 3)
    for wnid in ("n01440764", "n01443537", "n02105855", "n07583066")
    for number in range(7)
}
VALIDATION = {
    f"ILSVRC2012_val_{number:08d}.JPEG": (b"\xff\xd8" * (number + 50), wnid)
    for number, wnid in enumerate(["n07583066", "n01440764", "n01443537"] * 3, start=1)
}


def write_flat_classes(folder, train, held_out):
    """Class folders without splits whose files share their names, with a folder in one of them."""
    for number, (name, data) in enumerate(train.items()):
        path = folder / name.split("_")[0] / ("more" if number % 2 else "") / name[10:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "synsets.txt").write_text("n01440764\ta fish\nn02105855 a dog\n")
    return folder


LAYOUTS = {
    "archives": write_archives,
    "extracted": write_extracted,
    "sorted": write_sorted,
    "kaggle": write_kaggle,
    "parquet": write_parquet,
    "classes": write_flat_classes,
}


def known_by(source):
    order = make_plan(source, ShardConfig(seed=5)).order["train"]
    return source.identity()["sha256"], sum(n * int(place) for n, place in enumerate(order))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_source_is_known_by_what_it_was_known_by_at_edc7d49(tmp_path, layout):
    # Since then, archives that lack classes of the devkit are read only if these are named.
    options = SourceOptions(classes=WNIDS if layout == "archives" else None)
    source = find_source(LAYOUTS[layout](tmp_path / "source", TRAIN, VALIDATION), options)
    assert known_by(source) == PINNED[layout]
    assert source.identity() | {"sha256": ""} == {
        "kind": {"extracted": "folder", "sorted": "folder", "classes": "folder"}.get(
            layout, layout
        ),
        "name": "source",
        "images": {"train": 28} | ({} if layout == "classes" else {"validation": 9}),
        "sha256": "",
    }
