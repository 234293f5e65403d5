"""The card of a data set, read by huggingface_hub, markdown-it, rdflib and sha256sum."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import rdflib
import yaml
from click.testing import CliRunner
from datasets.features import Features
from drawing import draw_classes, jpeg, photograph
from huggingface_hub import DatasetCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from alexprep.cli import cli
from alexprep.dataset.card import (
    IMAGENET_TERMS,
    Publication,
    front_matter,
    label_names,
    make_card,
    plain,
)
from alexprep.dataset.card_files import card_warnings, renew_card
from alexprep.dataset.decode import store_planes
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.dataset.stats import compute_stats
from alexprep.dataset.store import LocalStore
from alexprep.dataset.verify import verify
from alexprep.errors import PrepareError
from alexprep.sources.synsets import ilsvrc2012
from pipelines.format import Manifest

CONFIG = ShardConfig(size=48, shards={"train": 3, "validation": 2})
CARD = ("README.md", "croissant.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data set with a gray image and one that was left out."""
    folder = tmp_path_factory.mktemp("card")
    zoo = draw_classes(folder / "zoo", np.random.default_rng(3), each=6)
    gray = jpeg(photograph(np.random.default_rng(7), mode="L"))
    (zoo / "train" / "ant" / "ant_train_0.JPEG").write_bytes(gray)
    (zoo / "train" / "bee" / "torn_|_<b>.JPEG").write_bytes(gray[:300])
    shard(zoo, folder / "made", CONFIG, RunOptions(workers=1, on_error="skip"))
    return folder / "made"


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made, tmp_path / "set")


def alexprep(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def contents(root, names=CARD):
    return {name: (root / name).read_bytes() for name in names}


def header(root):
    return DatasetCard.load(root / "README.md").data.to_dict()


def sha256sum(root):
    return subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=root,
        capture_output=True,
        text=True,
        env=os.environ | {"LC_ALL": "C"},
    )


class Tags(HTMLParser):
    """Names of the elements of a page, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def render(markdown):
    return Tags(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))


def test_huggingface_hub_reads_splits_features_and_sizes_from_the_card(root):
    data = header(root)
    assert data["license"] == "unknown"
    (config,) = data["configs"]
    assert config["data_files"] == [
        {"split": "train", "path": "train/*.tar"},
        {"split": "validation", "path": "validation/*.tar"},
    ]
    info = data["dataset_info"]
    features = Features._from_yaml_list(info["features"])
    assert features["cls"].names == ["ant", "bee", "cat"]
    assert [split["num_examples"] for split in info["splits"]] == [18, 18]
    tars = sum(path.stat().st_size for path in root.glob("*/*.tar"))
    assert info["download_size"] == tars


def test_sha256sum_agrees_with_every_file_but_the_card_and_finds_a_changed_one(root):
    listed = {line.split()[1] for line in (root / "SHA256SUMS").read_text().splitlines()}
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert listed == files - {"SHA256SUMS", *CARD}
    assert sha256sum(root).returncode == 0
    (root / "synsets.txt").write_text("x")
    assert "synsets.txt: FAILED" in sha256sum(root).stdout


def test_the_page_shows_what_was_mended_and_left_out(root):
    page = render((root / "README.md").read_text().split("---\n", 2)[2])
    assert "Repaired images: gray 1." in page.text
    assert "train/bee/torn_|_<b>.JPEG" in page.text
    assert "b" not in page.tags
    assert page.tags.count("table") == 4


@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated")  # rdflib calls its own
def test_croissant_is_json_ld_whose_provenance_names_source_codec_and_faults(root):
    prov, sc = rdflib.Namespace("http://www.w3.org/ns/prov#"), "https://schema.org/"
    graph = rdflib.Graph().parse(root / "croissant.json", format="json-ld")
    manifest = json.loads((root / "manifest.json").read_text())
    (source,) = graph.objects(predicate=prov.wasDerivedFrom)
    assert str(source) == f"urn:sha256:{manifest['source']['sha256']}"
    (activity,) = graph.objects(predicate=prov.wasGeneratedBy)
    values = {
        str(graph.value(node, rdflib.URIRef(f"{sc}propertyID"))): graph.value(
            node, rdflib.URIRef(f"{sc}value")
        ).toPython()
        for node in graph.objects(activity, rdflib.URIRef(f"{sc}additionalProperty"))
    }
    assert values["codec: jpeg"] == manifest["codec"]["jpeg"]
    assert values["images repaired: gray"] == 1
    assert values["files skipped"] == 1
    assert "torn_|_<b>.JPEG" in values["file skipped: 1"]
    hashes = {str(value) for value in graph.objects(predicate=rdflib.URIRef(f"{sc}sha256"))}
    shards = [entry for split in manifest["splits"].values() for entry in split["shards"]]
    assert hashes == {entry["sha256"] for entry in shards}


def test_a_card_can_be_renewed_and_remembers_what_it_was_told(root):
    before = contents(root)
    assert alexprep("card", root).exit_code == 0
    assert contents(root) == before
    words = ("--license", "cc-by-4.0", "--author", "A --> <i>lab</i>", "--data-version", "2.0.0")
    assert alexprep("card", root, *words).exit_code == 0
    assert alexprep("card", root, "--published", "2026-11-28").exit_code == 0
    data = json.loads((root / "croissant.json").read_text())
    assert data["license"] == "https://creativecommons.org/licenses/by/4.0/"
    assert (data["version"], data["datePublished"]) == ("2.0.0", "2026-11-28")
    assert data["creator"]["name"] == "A --> <i>lab</i>"
    assert header(root)["license"] == "cc-by-4.0"
    page = render((root / "README.md").read_text().split("---\n", 2)[2])
    assert "Published by A --> <i>lab</i>." in page.text
    assert "i" not in page.tags
    empty = [word for option in ("--license", "--author", "--published") for word in (option, "")]
    assert alexprep("card", root, "--data-version", "", *empty).exit_code == 0
    assert contents(root) == before


@pytest.mark.parametrize("name", CARD)
def test_a_card_edited_by_hand_is_refused_kept_by_stats_and_overwritten_by_force(root, name):
    generated = contents(root)
    path = root / name
    path.write_text(path.read_text().replace("48x48", "forty-eight"))
    edited = contents(root)
    assert edited != generated
    result = alexprep("card", root, "--license", "mit")
    assert result.exit_code == 1
    assert f"{path} was edited by hand" in result.output
    assert "--force" in result.output
    assert contents(root) == edited
    result = alexprep("stats", root, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert f"{path} was edited by hand and is kept" in result.output
    assert contents(root) == edited
    assert sha256sum(root).returncode == 0
    assert alexprep("card", root, "--force").exit_code == 0
    assert "Statistics" in (root / "README.md").read_text()
    assert "forty" not in path.read_text()


WORDS_OF_A_PUBLISHER = {
    "license": "cc-by-4.0",
    "author": "A",
    "description": "D",
    "version": "1.1.0",
    "url": "https://example.org/",
    "published": "2026-11-28",
}


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


DAMAGES = {
    "a bit": lambda data, rng: flipped(data, int(rng.integers(8 * len(data)))),
    "zeros": lambda data, rng: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "a lost end": lambda data, rng: data[: int(rng.integers(len(data)))],
    "an empty file": lambda data, rng: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", CARD)
def test_a_damaged_card_is_written_again_with_the_publishers_words(root, rng, name, damage, capsys):
    compute_stats(root, workers=1)
    renew_card(root, WORDS_OF_A_PUBLISHER)
    generated = contents(root)
    for _ in range(6 if damage == "a bit" else 1):
        (root / name).write_bytes(DAMAGES[damage](generated[name], rng))
        (warning,) = card_warnings(root, Manifest.load(root))
        assert f"{root / name} is damaged (" in warning
        capsys.readouterr()
        renew_card(root, {})
        assert f"{root / name} was damaged (" in capsys.readouterr().err
        assert contents(root) == generated


def test_a_description_that_was_edited_by_hand_is_not_one_of_a_killed_call(root):
    renew_card(root, WORDS_OF_A_PUBLISHER)
    path = root / "croissant.json"
    path.write_text(path.read_text().replace('"description": "D"', '"description": "mine"'))
    with pytest.raises(PrepareError, match="edited by hand"):
        renew_card(root, {})


def test_a_readme_that_is_gone_is_written_again_with_what_croissant_says(root):
    renew_card(root, WORDS_OF_A_PUBLISHER)
    generated = contents(root)
    (root / "README.md").unlink()
    renew_card(root, {})
    assert contents(root) == generated


def test_a_card_is_not_written_while_another_run_writes(root):
    before = contents(root)
    with LocalStore(root).locked():
        assert alexprep("card", root, "--license", "mit").exit_code == 1
    assert contents(root) == before
    assert alexprep("card", root / "nowhere").exit_code == 1
    assert not (root / "nowhere").exists()


def test_a_readme_of_someone_else_is_not_overwritten(root):
    (root / "README.md").write_text("# My notes\n")
    assert alexprep("card", root).exit_code == 1
    assert (root / "README.md").read_text() == "# My notes\n"


def test_stats_puts_its_numbers_on_the_card_and_its_files_into_the_checksums(root):
    stats = compute_stats(root, workers=1)
    text = (root / "README.md").read_text()
    assert ", ".join(f"{value:.2f}" for value in stats.mean.tolist()) in text
    assert {"stats.json", "stats.npz", "mean.png"} <= {
        line.split()[1] for line in (root / "SHA256SUMS").read_text().splitlines()
    }
    assert sha256sum(root).returncode == 0
    assert verify(root, workers=1).faults == ()


def test_a_data_set_of_an_earlier_version_gets_a_card_only_when_asked(root):
    for name in (*CARD, "SHA256SUMS"):
        (root / name).unlink()
    for _ in range(2):
        compute_stats(root, workers=1)
        assert not (root / "README.md").exists()
    assert verify(root, workers=1).faults == ()
    assert alexprep("card", root).exit_code == 0
    assert "Statistics" in (root / "README.md").read_text()
    assert sha256sum(root).returncode == 0


@pytest.mark.parametrize("command", ["stats", "planes", "shard"])
def test_what_no_file_repeats_of_a_manifest_is_checked_from_the_next_write_on(tmp_path, command):
    zoo = draw_classes(tmp_path / "zoo", np.random.default_rng(3), each=2)
    root = tmp_path / "first release"
    shard(zoo, root, CONFIG, RunOptions(workers=1))
    for name in (*CARD, "SHA256SUMS"):
        (root / name).unlink()
    result = verify(root, workers=1)
    assert result.faults == ()
    assert [line for line in result.warnings if f"{root / 'SHA256SUMS'} is missing" in line]
    if command == "shard":
        shard(zoo, root, CONFIG, RunOptions(workers=1))
    else:
        compute_stats(root, workers=1) if command == "stats" else store_planes(root, workers=1)
    assert not any("SHA256SUMS" in line for line in verify(root, workers=1).warnings)
    manifest = (root / "manifest.json").read_text()
    (root / "manifest.json").write_text(manifest.replace('"kind": "', '"kind": "no '))
    (fault,) = verify(root, workers=1).faults
    assert fault.startswith(f"{root / 'manifest.json'}: sha256 is ")


def test_statistics_of_other_shards_are_not_on_the_card(root):
    compute_stats(root, workers=1)
    raw = json.loads((root / "stats.json").read_text())
    raw["shards"] = dict.fromkeys(raw["shards"], "0" * 64)
    (root / "stats.json").write_text(json.dumps(raw))
    assert alexprep("card", root).exit_code == 0
    assert "Statistics" not in (root / "README.md").read_text()


def test_verify_names_what_is_wrong_with_the_checksums(root):
    sums = root / "SHA256SUMS"
    raw = json.loads((root / "manifest.json").read_text())
    raw["alexprep"] = "0.0.1"
    (root / "manifest.json").write_text(json.dumps(raw))
    lines = sums.read_text().splitlines()
    tar = next(line.split()[1] for line in lines if line.endswith(".tar"))
    lines = [line for line in lines if not line.endswith(tar)] + [f"{'0' * 64}  ../../etc/passwd"]
    sums.write_text("\n".join(lines) + "\n")
    first, second, third = verify(root, workers=1).faults
    assert first == f"{sums} has no line for {tar}"
    assert second.startswith(f"{root / 'manifest.json'}: sha256 is ")
    assert third == f"{sums} names '../../etc/passwd', which is not in the data set"
    sums.write_text("no hash\n")
    (only,) = verify(root, workers=1).faults
    assert only == f"{sums}, line 1: expected a SHA-256 and a name, got 'no hash'"


def test_verify_names_what_is_wrong_with_the_description(root):
    path = root / "croissant.json"
    data = json.loads(path.read_text())
    data["distribution"][0]["sha256"] = "1" * 64
    path.write_text(json.dumps(data))
    (fault,) = verify(root, workers=1).faults
    assert f"{path} says sha256 {'1' * 64} of {data['distribution'][0]['@id']}" in fault
    path.write_text("[")
    (fault,) = verify(root, workers=1).faults
    assert f"{path} is damaged" in fault


@pytest.mark.parametrize(
    ("option", "value"),
    [("--license", "My <own>"), ("--data-version", "1 0"), ("--published", "yesterday")],
)
def test_a_value_that_no_reader_would_take_is_a_usage_error(root, option, value):
    before = contents(root)
    result = alexprep("card", root, option, value)
    assert result.exit_code == 2
    assert repr(value) in result.output
    assert contents(root) == before


def renamed(manifest, classes):
    splits = {
        name: replace(split, counts=(1,) * len(classes)) for name, split in manifest.splits.items()
    }
    return replace(manifest, classes=tuple(classes), splits=splits)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
WORDS = st.sampled_from(
    ["---", "x: y", "'", "null", "<script>alert(1)</script>", "|", "~", "[a](b)"]
)


@given(st.lists(NAMES | WORDS, min_size=1, max_size=6))
def test_names_with_yaml_or_html_in_them_are_names(made, names):
    manifest = renamed(Manifest.load(made), [(f"c{n}", name) for n, name in enumerate(names)])
    text = make_card(manifest).readme
    labels = DatasetCard(text).data.to_dict()["dataset_info"]["features"][1]["dtype"]
    assert list(labels["class_label"]["names"].values()) == label_names(manifest.classes)
    page = render(text.split("\n---\n", 1)[1])
    assert set(page.tags) <= {
        *("h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "code", "pre"),
    }


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_escaped_text_is_shown_as_it_was(text):
    words = " ".join(text.split())
    page = render(f"| x |\n|---|\n| .{plain(text)}. |\n")
    assert page.text.split("x", 1)[1].strip() == f".{words}."


def test_two_classes_of_one_name_are_told_apart_as_datasets_demands():
    names = label_names([(synset.wnid, synset.names) for synset in ilsvrc2012()])
    assert len(set(names)) == 1000
    assert Features._from_yaml_list(
        [{"name": "cls", "dtype": {"class_label": {"names": dict(enumerate(names))}}}]
    )
    twice = [("n02012849", "crane"), ("n03126707", "crane"), ("a", "")]
    assert label_names(twice) == ["crane (n02012849)", "crane (n03126707)", "(a)"]
    assert label_names([("b", "a"), ("c", "a"), ("d", "a (b)")]) == ["b", "c", "d"]


def test_images_of_imagenet_come_with_its_terms_unless_another_license_is_given(made):
    manifest = renamed(Manifest.load(made), [(f"n0144076{n}", "fish") for n in range(3)])
    data = yaml.safe_load(front_matter(manifest, Publication()))
    assert (data["license"], data["license_link"]) == ("other", IMAGENET_TERMS)
    assert "non-commercial research" in data["extra_gated_prompt"]
    card = make_card(manifest)
    assert json.loads(card.croissant)["license"] == IMAGENET_TERMS
    assert "must have agreed to the terms" in card.readme
    assert yaml.safe_load(front_matter(manifest, Publication(license="mit")))["license"] == "mit"
