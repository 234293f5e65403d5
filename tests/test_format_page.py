"""The documented format is what is written: no field more, none less, each of its type.

docs/reference/format.md is generated from docs/generate/format.py, which is compared here with a
data set that was really written.
"""

import hashlib
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from alexprep.dataset.lookup import read_sample
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.dataset.stats import compute_stats
from docs.generate.format import CODE, FIELDS, FIX_MEANINGS, HEADER, MEMBER_MEANINGS
from pipelines.format import FIXES, MEMBERS
from pipelines.imagestats import SHAPES, UNITS
from tests.documented import assert_documented
from tests.drawing import draw_classes, jpeg, photograph
from tests.shard_sets import all_samples

PAGE = (Path(__file__).parents[1] / "docs" / "reference" / "format.md").read_text()


def block(pattern):
    """The only block of the page that matches."""
    [text] = re.findall(pattern, PAGE, re.DOTALL | re.MULTILINE)
    return text


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A set that has something for every table of the page: mended and left-out files, splits."""
    folder = tmp_path_factory.mktemp("format")
    zoo = draw_classes(folder / "zoo", np.random.default_rng(6))
    gray = jpeg(photograph(np.random.default_rng(7), mode="L"))
    (zoo / "train" / "ant" / "ant_train_0.JPEG").write_bytes(gray)
    (zoo / "train" / "bee" / "torn.JPEG").write_bytes(gray[:300])
    config = ShardConfig(size=64, shards={"train": 3, "validation": 2})
    shard(zoo, folder / "made", config, RunOptions(workers=1, on_error="skip"))
    compute_stats(folder / "made", workers=1)
    return folder / "made"


@pytest.mark.parametrize("section", CODE)
def test_the_fields_are_those_of_the_code_in_its_order(section):
    assert list(FIELDS[section]) == CODE[section]


def test_units_fixes_and_members_are_those_of_the_code():
    assert set(UNITS.values()) < FIELDS["stats.json"].keys()
    assert FIX_MEANINGS.keys() == set(FIXES)
    assert tuple(MEMBER_MEANINGS) == MEMBERS


def test_a_written_manifest_is_as_documented(root):
    manifest = json.loads((root / "manifest.json").read_bytes())
    assert manifest["left_out"]
    assert manifest["mended"]["gray"] == ["ant_train_0"]
    assert_documented(manifest, "manifest")


def test_written_sidecars_are_as_documented(root):
    info = json.loads((root / "_info.json").read_bytes())
    assert info.keys() == {"splits"}
    for split, about in info["splits"].items():
        assert_documented(about, "_info.json")
        wids = json.loads((root / f"wids-{split}.json").read_bytes())
        assert_documented(wids, "wids-SPLIT.json")
        assert (wids["__kind__"], wids["wids_version"]) == ("wids-shard-index-v1", 1)
    assert_documented(json.loads((root / "stats.json").read_bytes()), "stats.json")
    arrays = np.load(root / "stats.npz")
    assert {name: arrays[name].shape for name in arrays.files} == {
        name: shape or (64, 64, 3) for name, shape in SHAPES.items()
    }
    assert {arrays[name].dtype for name in arrays.files} == {np.dtype(np.float64)}


def test_every_json_of_a_sample_is_as_documented(root):
    for _, _, label, about in all_samples(root, "train"):
        assert_documented(about, "KEY.json")
        assert re.fullmatch(rb"\d{4}", label)


def test_every_header_is_as_documented(root):
    starts = [offset for offset, *_ in HEADER]
    assert starts == [0, *np.cumsum([size for _, size, *_ in HEADER])[:-1]]
    assert HEADER[-1][0] + HEADER[-1][1] == 512
    for path in root.glob("*/*.tar"):
        data = path.read_bytes()
        assert len(data) % 10_240 == 0
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = archive.getmembers()
            assert data[archive.offset :].strip(b"\0") == b""
            assert len(data) - archive.offset >= 1024
        for member in members:
            header = data[member.offset : member.offset_data]
            assert len(header) == 512
            for offset, size, value, meaning in HEADER:
                if value is not None:
                    assert header[offset : offset + size] == value.ljust(size, b"\0"), meaning
            total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
            assert header[148:156] == b"%06o\0 " % total
            assert header[124:136] == b"%011o\0" % member.size
            assert header[:100].rstrip(b"\0") == member.name.encode()


def files_below(root):
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_every_file_of_a_set_is_on_the_page(root):
    read_sample(root, "ant_train_1")  # as `alexprep cat`
    tree = block(r"^## Folder\n\n((?:    .*?\n)+)").replace("imagenet1k", "zoo")
    words = [word.strip(",").removeprefix("ROOT/") for word in re.findall(r"\S+\.\w+", tree)]
    patterns = [word.replace("000000", "*").replace("train-*.idx", "*.idx") for word in words]
    patterns.append("SHA256SUMS")
    known = {str(path.relative_to(root)) for p in patterns for path in root.glob(f"**/{p}")}
    assert files_below(root) - known == set()


def test_the_lines_of_an_index_are_as_the_page_shows_them(root):
    example = block(r"```text\n(v1\.2.*?)```")
    head, *lines = example.splitlines()
    assert head == f"v1.2 {len(lines)}"
    shapes = {re.sub(r"[^\s.]+(?=\.(?:jpg|cls|json)\b)|\d+", "#", line) for line in lines}
    assert len(shapes) == 1
    for path in root.glob("index/*.idx"):
        written = path.read_text().splitlines()[1:]
        assert {re.sub(r"[^\s.]+(?=\.(?:jpg|cls|json)\b)|\d+", "#", line) for line in written} == (
            shapes
        )


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_reader_on_the_page_finds_what_tar_finds(root, split):
    code = block(r"```python\n(.*?)```")
    assert len(code.splitlines()) <= 30
    names = {}
    exec(code, names)
    found = list(names["read_split"](root, split))
    assert found == [(key, int(label), image) for key, image, label, _ in all_samples(root, split)]
    assert len(found) == 24


def test_the_permutation_on_the_page_is_the_one_in_the_shards(root):
    # As the page words it, by numpy's own Philox.
    digest = hashlib.sha256(b"0/validation").digest()
    raw = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(24)
    keys = [key for key, *_ in all_samples(root, "validation")]
    assert keys == [sorted(keys)[place] for place in np.argsort(raw, kind="stable")]
