"""docs/format.md says what is written: no field more, none less, and of the type it gives.

The page's tables are compared with the dataclasses, and with a data set that was really written.
"""

import ast
import dataclasses
import hashlib
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from alexprep.dataset.codec import CODEC
from alexprep.dataset.lookup import read_sample
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.dataset.stats import compute_stats
from pipelines.format import FIXES, MEMBERS, Left, Manifest, Shard, Split
from pipelines.imagestats import SHAPES, UNITS
from tests.drawing import draw_classes, jpeg, photograph
from tests.shard_sets import all_samples

PAGE = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
SECTIONS = dict(re.findall(r"^#{2,3} (.+)\n((?:(?!#{2,3} ).*\n)*)", PAGE, re.MULTILINE))


def table(section, head):
    """The rows below a head such as "field | type | what"; cells without their backticks."""
    rows = re.search(
        rf"^\| {re.escape(head)} \|\n\|[-|]+\|\n((?:\|.*\n)+)", SECTIONS[section], re.MULTILINE
    )[1]
    cells = [[cell.strip() for cell in row.strip("|\n").split("|")] for row in rows.splitlines()]
    assert all(cell for row in cells for cell in row), section
    return cells


def fields(section):
    """name -> type."""
    return {name.strip("`"): kind for name, kind, _ in table(section, "field | type | what")}


PLAIN = {"text": str, "integer": int, "number": float, "boolean": bool}


def faults(value, kind, where):
    """What in a JSON value is not as a type of the page says."""
    if kind in PLAIN:
        if type(value) is not PLAIN[kind]:
            yield f"{where} is {value!r}, not {kind}"
    elif kind == "list of [text, text]":
        yield from faults(value, "list of list of text", where)
        yield from (f"{where} has {pair}" for pair in value if len(pair) != 2)
    elif kind.startswith("list of "):
        for place, each in enumerate(value):
            yield from faults(each, kind.removeprefix("list of "), f"{where}[{place}]")
    elif kind.startswith("name -> "):
        for name, each in value.items():
            yield from faults(each, kind.removeprefix("name -> "), f"{where}.{name}")
    else:
        yield from object_faults(value, kind.strip("`"), where)


def object_faults(value, section, where):
    known = fields(section)
    if value.keys() != known.keys():
        yield f"{where}: differ in {sorted(value.keys() ^ known.keys())}"
    for name in value.keys() & known.keys():
        yield from faults(value[name], known[name], f"{where}.{name}")


def check(value, section):
    assert list(object_faults(value, section, section)) == []


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


@pytest.mark.parametrize(
    ("section", "kind"),
    [("The top", Manifest), ("split", Split), ("shard", Shard), ("left_out", Left)],
)
def test_the_page_has_the_fields_of_the_code_in_its_order(section, kind):
    names = [field.name for field in dataclasses.fields(kind)]
    assert list(fields(section)) == names


def test_the_page_has_the_options_and_the_codec_of_the_writer():
    assert list(fields("config")) == [field.name for field in dataclasses.fields(ShardConfig)]
    assert fields("codec").keys() == CODEC.keys()


def test_the_page_has_the_numbers_of_the_statistics_with_their_units():
    assert set(UNITS.values()) < fields("stats.json").keys()
    arrays = table("stats.json", "array of `stats.npz` | shape")
    assert [name.strip("`") for name, _ in arrays] == list(SHAPES)


def test_the_page_names_every_fix_there_is():
    said = SECTIONS["KEY.json"].split("`fixes` knows")[1].split(";")[0]
    assert tuple(re.findall(r"`(\w+)`", said)) == FIXES


def test_a_written_manifest_is_as_the_page_says(root):
    manifest = json.loads((root / "manifest.json").read_bytes())
    assert manifest["left_out"]
    assert manifest["mended"]["gray"] == ["ant_train_0"]
    check(manifest, "The top")


def test_written_sidecars_are_as_the_page_says(root):
    info = json.loads((root / "_info.json").read_bytes())
    assert info.keys() == {"splits"}
    for split, about in info["splits"].items():
        check(about, "_info.json")
        wids = json.loads((root / f"wids-{split}.json").read_bytes())
        check(wids, "wids-SPLIT.json")
        assert (wids["__kind__"], wids["wids_version"]) == ("wids-shard-index-v1", 1)
    check(json.loads((root / "stats.json").read_bytes()), "stats.json")
    arrays = np.load(root / "stats.npz")
    side = {"height": 64, "width": 64}
    for name, shape in table("stats.json", "array of `stats.npz` | shape"):
        words = shape.split(", ")
        assert arrays[name.strip("`")].shape == tuple(side.get(w) or int(w) for w in words)
        assert arrays[name.strip("`")].dtype == np.float64
    assert {name.strip("`") for name, _ in table("stats.json", "array of `stats.npz` | shape")} == (
        set(arrays.files)
    )


def test_every_json_of_a_sample_is_as_the_page_says(root):
    members = [name.strip("`") for name, _ in table("A sample", "member | content")]
    assert members == [f"KEY.{kind}" for kind in MEMBERS]
    for _, _, label, about in all_samples(root, "train"):
        check(about, "KEY.json")
        assert re.fullmatch(rb"\d{4}", label)


def test_every_header_is_as_the_page_says(root):
    rows = [
        (int(at), int(length), content)
        for at, length, content in table("A tar", "offset | bytes | content")
    ]
    assert [at for at, _, _ in rows] == [0, *np.cumsum([length for _, length, _ in rows])[:-1]]
    assert rows[-1][0] + rows[-1][1] == 512
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
            for at, length, content in rows:
                written = header[at : at + length]
                if constant := re.match(r"`(.*?)`:", content):
                    wanted = ast.literal_eval(f"b'{constant[1]}'")
                    assert written == (wanted.ljust(length, b"\0")), content
            total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
            assert header[148:156] == b"%06o\0 " % total
            assert header[124:136] == b"%011o\0" % member.size
            assert header[:100].rstrip(b"\0") == member.name.encode()


def files_below(root):
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_every_file_of_a_set_is_on_the_page(root):
    read_sample(root, "ant_train_1")  # as `alexprep cat`
    drawing = re.search(r"((?:^    .*\n)+)", SECTIONS["The folder"], re.MULTILINE)[1]
    said = drawing.replace("imagenet1k", "zoo").replace(".npz, mean", ".npz mean")
    words = [word.strip(",").removeprefix("ROOT/") for word in re.findall(r"\S+\.\w+", said)]
    patterns = [word.replace("000000", "*").replace("train-*.idx", "*.idx") for word in words]
    known = {str(path.relative_to(root)) for p in patterns for path in root.glob(f"**/{p}")}
    assert files_below(root) - known == set()


def test_the_lines_of_an_index_are_as_the_page_shows_them(root):
    example = re.search(r"```text\n(v1\.2.*?)```", SECTIONS["The index"], re.DOTALL)[1]
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
    code = re.search(r"```python\n(.*?)```", SECTIONS["A reader in thirty lines"], re.DOTALL)[1]
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
