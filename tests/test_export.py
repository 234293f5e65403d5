import io
import json
import struct
import subprocess
import sys
import tarfile
from itertools import pairwise

import numpy as np
import pytest
import yaml

from alexprep.dataset.checksums import hash_file
from alexprep.dataset.export import dali_index, export, index_tars
from alexprep.errors import PrepareError
from pipelines.format import Manifest
from tests.shard_sets import all_samples
from tests.tarsets import drawn_items, write_dataset


@pytest.fixture
def root(tmp_path):
    items = drawn_items(np.random.default_rng(5), 20, size=32)
    splits = {"train": items[:14], "validation": items[14:]}
    return write_dataset(tmp_path / "set", splits, size=32, shards=2)


def write_tar(path, files, format=tarfile.USTAR_FORMAT):
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


FOREIGN = {
    "a/one.jpg": b"1" * 700,
    "a/one.txt": b"caption",
    "a/one.seg.png": b"",
    "a/.hidden": b"x",
    "two.jpg": b"2" * 512,
    "b.c/two.jpg": b"3",
}


def test_the_index_is_the_one_that_dalis_own_tool_writes(tmp_path):
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = write_tar(tmp_path / "foreign.tar", FOREIGN, format)
        program = "import sys, wds2idx; wds2idx.main()"
        command = [sys.executable, "-c", program, str(path), str(tmp_path / "theirs.idx")]
        subprocess.run(command, check=True, capture_output=True)
        assert dali_index(path) == (tmp_path / "theirs.idx").read_text()


def test_the_index_of_a_shard_is_the_one_it_was_written_with(root):
    index = sorted((root / "index").iterdir())[0]
    before = index.read_text()
    index.unlink()
    tar = next(path for path in root.glob("*/*.tar") if path.stem == index.stem)
    assert index_tars([tar]) == [index]
    assert index.read_text() == before


def test_the_index_of_a_foreign_tar_lies_beside_it_or_where_asked(tmp_path):
    path = write_tar(tmp_path / "foreign.tar", FOREIGN)
    assert index_tars([path]) == [tmp_path / "foreign.idx"]
    assert index_tars([path], tmp_path / "new" / "here") == [tmp_path / "new/here/foreign.idx"]


def test_what_cannot_be_indexed_is_named(tmp_path):
    spaced = write_tar(tmp_path / "spaced.tar", {"a b.jpg": b"x"})
    with pytest.raises(PrepareError, match=r"spaced\.tar has a member 'a b\.jpg'"):
        index_tars([spaced])
    empty = write_tar(tmp_path / "empty.tar", {"README": b"x"})
    with pytest.raises(PrepareError, match=r"empty\.tar holds no sample"):
        index_tars([empty])
    with pytest.raises(PrepareError, match=r"absent\.tar is not a file"):
        index_tars([tmp_path / "absent.tar"])
    torn = tmp_path / "torn.tar"
    torn.write_bytes(write_tar(tmp_path / "whole.tar", FOREIGN).read_bytes()[:600])
    with pytest.raises(PrepareError, match=r"torn\.tar"):
        index_tars([torn])


def test_energon_finds_where_each_sample_begins_and_the_last_one_ends(root, tmp_path):
    out = tmp_path / "energon"
    export("energon", root, out)
    for path in out.glob("*/*.tar"):
        with tarfile.open(path) as tar:
            begins = [info.offset for info in tar if info.name.endswith(".jpg")]
            end = tar.offset
        raw = path.with_suffix(".tar.idx").read_bytes()
        assert list(struct.unpack(f"{len(raw) // 8}Q", raw)) == [*begins, end]
    info = json.loads((out / ".nv-meta" / ".info.json").read_text())
    assert sum(info["shard_counts"].values()) == 20
    parts = json.loads((out / ".nv-meta" / "split.yaml").read_text())["split_parts"]
    assert {name: len(shards) for name, shards in parts.items()} == {"train": 2, "val": 2}
    assert all((out / name).is_file() for names in parts.values() for name in names)


def test_an_export_that_was_killed_is_not_finished_as_another(root, tmp_path):
    (tmp_path / "out" / ".alexprep").mkdir(parents=True)
    whole = f"openclip {hash_file(root / 'manifest.json')}\n"
    (tmp_path / "out" / ".alexprep" / "export").write_text(whole)
    (tmp_path / "out" / "train").mkdir()
    with pytest.raises(PrepareError, match="is not empty"):
        export("energon", root, tmp_path / "out")
    export("openclip", root, tmp_path / "out")


def energon_samples(out, part):
    """A split as Energon's documentation describes one, read with tarfile and PyYAML alone.

    The package itself wants Pillow, which would overwrite pillow-simd; release 7.4.1 was tried by
    hand in an environment of its own.
    """
    about = yaml.safe_load((out / ".nv-meta" / "dataset.yaml").read_text())
    counts = json.loads((out / ".nv-meta" / ".info.json").read_text())["shard_counts"]
    for shard in yaml.safe_load((out / ".nv-meta" / "split.yaml").read_text())["split_parts"][part]:
        raw = (out / f"{shard}.idx").read_bytes()
        places = struct.unpack(f"={len(raw) // 8}Q", raw)
        assert len(places) == counts[shard] + 1
        data = (out / shard).read_bytes()
        for begin, end in pairwise(places):
            with tarfile.open(fileobj=io.BytesIO(data[begin:end])) as sample:
                files = {
                    info.name.partition("."): sample.extractfile(info).read() for info in sample
                }
            (key,) = {name for name, _, _ in files}
            yield key, *(files[key, ".", kind] for kind in about["field_map"].values())


def test_a_reader_of_energons_format_finds_every_sample(root, tmp_path):
    export("energon", root, tmp_path / "energon")
    for part, split in (("train", "train"), ("val", "validation")):
        wanted = [(key, jpg, cls) for key, jpg, cls, _ in all_samples(root, split)]
        assert list(energon_samples(tmp_path / "energon", part)) == wanted


DALI = """
import sys
from nvidia.dali import fn, pipeline_def
@pipeline_def(batch_size=1, num_threads=1, device_id=None)
def pipe():
    return fn.readers.webdataset(paths=sys.argv[1], index_paths=sys.argv[2], ext=["jpg"], name="r")
reader = pipe()
reader.build()
for _ in range(reader.epoch_size("r")):
    print(len(bytes(reader.run()[0].at(0))))
"""


def test_dali_reads_a_foreign_tar_by_our_index(tmp_path):
    path = write_tar(tmp_path / "foreign.tar", FOREIGN)
    (index,) = index_tars([path])
    done = subprocess.run(
        [sys.executable, "-c", DALI, path, index], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["700", "512", "1"]


def test_openclip_finds_the_samples_of_each_tar(root, tmp_path):
    export("openclip", root, tmp_path / "clip")
    manifest = Manifest.load(root)
    for name, split in manifest.splits.items():
        sizes = json.loads((tmp_path / "clip" / name / "sizes.json").read_text())
        there = {path.name for path in (tmp_path / "clip" / name).glob("*.tar")}
        assert sizes.keys() == there
        assert sum(sizes.values()) == split.samples


def test_an_export_takes_no_room_and_leaves_the_data_set_as_it_is(root, tmp_path):
    before = sorted(root.rglob("*"))
    export("openclip", root, tmp_path / "clip")
    assert sorted(root.rglob("*")) == before
    tar = next((tmp_path / "clip" / "train").glob("*.tar"))
    assert tar.samefile(root / "train" / tar.name)


def test_a_folder_with_something_in_it_is_not_exported_into(root):
    with pytest.raises(PrepareError, match="is not empty"):
        export("energon", root, root)
