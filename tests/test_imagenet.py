"""check-imagenet on the facts alone, and on drawn sets of ILSVRC's shape that deviate from it."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from drawing import draw_classes, jpeg, photograph
from tarsets import Item, drawn_items, measured, write_dataset

from alexprep.cli import cli
from alexprep.dataset.imagenet import CMYK, VALIDATION_IDS, Facts, check_imagenet
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.sources.ilsvrc import MD5
from alexprep.sources.synsets import ilsvrc2012

# Labels of ILSVRC2012_val_00000001 to 20 as in val.txt of caffe_ilsvrc12.tar.gz, which counts the
# sorted wnids from 0; the program under test comes to them from the development kit's ids.
CAFFE_LABELS = (
    *(65, 970, 230, 809, 516, 57, 334, 415, 674, 332),
    *(109, 286, 370, 757, 595, 147, 108, 23, 478, 517),
)
AXES = np.array([[-0.5635, -0.5762, -0.592], [-0.7126, -0.0235, 0.7012], [0.418, -0.817, 0.3973]])


def keys():
    return [f"ILSVRC2012_val_{number:08d}" for number in range(1, 21)]


def test_the_facts_agree_with_each_other():
    facts = Facts()
    wnids = [synset.wnid for synset in ilsvrc2012()]
    assert list(facts.wnids) == sorted(wnids)
    assert len(facts.wnids) == 1000
    for split, images in facts.images.items():
        fewest, most = facts.per_class[split]
        assert 1000 * fewest <= images <= 1000 * most
    assert facts.images["validation"] == 1000 * facts.per_class["validation"][0]
    assert len(CMYK) == 23  # 22 for training, 1 for validation
    for key in set().union(*facts.fixed.values()) - {"ILSVRC2012_val_00019877"}:
        assert key.split("_")[0] in wnids
    assert all(len(md5) == 32 and int(md5, 16) for md5 in facts.md5.values())
    # The axes are those of one covariance: at right angles, of length 1.
    np.testing.assert_allclose(np.array(facts.axes) @ np.array(facts.axes).T, np.eye(3), atol=2e-4)
    assert list(facts.stdevs) == sorted(facts.stdevs, reverse=True)


def test_the_ids_of_the_development_kit_are_the_labels_of_caffe():
    wnids = sorted(synset.wnid for synset in ilsvrc2012())
    assert list(Facts().validation.items()) == [
        (key, wnids[label]) for key, label in zip(keys(), CAFFE_LABELS, strict=True)
    ]
    assert len(set(VALIDATION_IDS)) == 20


def edit(root, change):
    path = root / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def as_published(raw):
    """Make a manifest say what is published."""
    raw["classes"] = [[synset.wnid, synset.names] for synset in ilsvrc2012()]
    counts = [732, *[1300] * 895]
    remainder, classes = 1_281_167 - sum(counts), 1000 - len(counts)
    counts += [remainder // classes] * (classes - 1)
    counts.append(1_281_167 - sum(counts))
    raw["splits"]["train"]["counts"] = counts
    raw["splits"]["validation"]["counts"] = [50] * 1000
    raw["mended"] = {"cmyk": sorted(CMYK), "png": ["n02105855_2933"]}
    raw["fixes"] = {"cmyk": 23, "png": 1, "gray": 12_000}


def published_stats(root):
    """Statistics whose colours are the published ones."""
    stats = measured(root, size=256)
    mean = np.array([0.4845, 0.4541, 0.4025]) * 255
    image = np.full((256, 256, 3), 200.0)
    image[16:240, 16:240] = mean  # only the centre was published
    stdevs = np.array([121.78, 37.09, 19.72])
    stats = replace(
        stats,
        mean_image_HWC=image,
        stdevs=stdevs,
        eigenvalues=stdevs**2,
        eigenvectors=-AXES.T.copy(),
    )
    stats.save(root)
    return stats


@pytest.fixture
def root(tmp_path):
    """A set of few images that says of itself what is published, with the true labels."""
    train = drawn_items(np.random.default_rng(5), 6, size=256)
    data = jpeg(photograph(np.random.default_rng(6), 256, 256), 95, subsampling=2)
    items = [Item(key, data, label) for key, label in zip(keys(), CAFFE_LABELS, strict=True)]
    splits = {"train": train, "validation": items}
    root = write_dataset(tmp_path / "set", splits, size=256, classes=1000)
    edit(root, as_published)
    published_stats(root)
    return root


def verdicts(root, source=None):
    return [str(comparison) for comparison in check_imagenet(root, source)]


def test_a_set_as_published_agrees_with_every_fact(root):
    result = CliRunner().invoke(cli, ["check-imagenet", str(root)])
    assert result.exit_code == 0, result.output
    *facts, archives = result.output.splitlines()
    assert archives.startswith("unknown MD5 of the archives")
    assert [line.split(":")[0] for line in facts] == [
        "ok      classes",
        "ok      train images",
        "ok      train images per class",
        "ok      validation images",
        "ok      validation images per class",
        "ok      unreadable images",
        "ok      CMYK files",
        "ok      PNG files",
        "ok      labels of 20 validation images",
        "ok      mean colour of the centre 224",
        "ok      standard deviation along the axes",
        "ok      colour axes",
    ]


def lose_an_image(raw):
    raw["splits"]["train"]["counts"][5] -= 1


def lose_many_of_a_class(raw):
    raw["splits"]["train"]["counts"][:2] = [731, 1301]


def swap_two_classes(raw):
    raw["classes"][3], raw["classes"][4] = raw["classes"][4], raw["classes"][3]


def move_a_validation_image(raw):
    raw["splits"]["validation"]["counts"][:2] = [49, 51]


def leave_one_out(raw):
    raw["left_out"] = [{"path": "n01440764/a.JPEG", "sha256": "0" * 64, "reason": "is torn"}]


def mend_one_less(raw):
    raw["mended"]["cmyk"].remove("n07583066_647")
    raw["fixes"]["cmyk"] -= 1


def mend_another(raw):
    raw["mended"]["png"].append("n01440764_1")
    raw["fixes"]["png"] += 1


def count_labels_from_one(raw):
    raw["classes"] = raw["classes"][-1:] + raw["classes"][:-1]


@pytest.mark.parametrize(
    ("deviation", "lines"),
    [
        (lose_an_image, ["train images: 1,281,166, published 1,281,167"]),
        (
            lose_many_of_a_class,
            ["train images per class: 731 to 1,301, published 732 to 1,300"],
        ),
        (move_a_validation_image, ["validation images per class: 49 to 51, published 50 to 50"]),
        (
            swap_two_classes,
            ["classes: 1,000, 2 with another label, published 1,000 in ASCII order of their wnids"],
        ),
        (leave_one_out, ["unreadable images: 1 (n01440764/a.JPEG), published 0"]),
        (mend_one_less, ["CMYK files: 22, without n07583066_647, published 23"]),
        (mend_another, ["PNG files: 2, also n01440764_1, published 1"]),
        (
            count_labels_from_one,
            [
                "classes: 1,000, 1,000 with another label, published 1,000 in ASCII order of their "
                "wnids",
                "labels of 20 validation images: 20 wrong, the first: ILSVRC2012_val_00000001 is "
                "n01749939, published n01751748",
            ],
        ),
    ],
)
def test_each_deviation_of_the_manifest_is_named(root, deviation, lines):
    edit(root, deviation)
    if deviation is lose_many_of_a_class:  # as many images as before
        edit(root, lambda raw: _keep_the_sum(raw["splits"]["train"]["counts"]))
    result = CliRunner().invoke(cli, ["check-imagenet", str(root)])
    assert result.exit_code == 1
    differing = [line for line in result.output.splitlines() if not line.startswith(("ok", "unk"))]
    assert differing == [f"differs {line}" for line in lines]


def _keep_the_sum(counts):
    counts[-2] += 1_281_167 - sum(counts)


def test_a_wrong_label_in_a_tar_is_named(root):
    tar = sorted((root / "validation").iterdir())[0]
    data = bytearray(tar.read_bytes())
    begin = data.index(b"ILSVRC2012_val_00000002.cls") + 512
    assert data[begin : begin + 4] == b"0970"
    data[begin : begin + 4] = b"0971"
    tar.write_bytes(data)
    (line,) = [line for line in verdicts(root) if line.startswith("differs")]
    assert "1 wrong, the first: ILSVRC2012_val_00000002 is n09229709" in line


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda s: {"mean_image_HWC": s.mean_image_HWC[..., ::-1].copy()}, "mean colour"),
        (lambda s: {"mean_image_HWC": s.mean_image_HWC + 0.6}, "mean colour"),
        (lambda s: {"stdevs": s.stdevs * [1, 1.16, 1]}, "standard deviation along the axes"),
        (lambda s: {"eigenvectors": np.roll(s.eigenvectors, 1, axis=0)}, "colour axes"),
    ],
)
def test_each_deviation_of_the_colours_is_named(root, change, line):
    stats = published_stats(root)
    replace(stats, **change(stats)).save(root)
    (differing,) = [text for text in verdicts(root) if text.startswith("differs")]
    assert differing.startswith(f"differs {line}")


def test_colours_within_the_tolerance_are_ok_and_unknown_without_statistics(root):
    stats = published_stats(root)
    changed = {"mean_image_HWC": stats.mean_image_HWC + 0.4, "stdevs": stats.stdevs * 0.9}
    replace(stats, **changed).save(root)
    assert not any(line.startswith("differs") for line in verdicts(root))
    (root / "stats.json").unlink()
    unknown = [line for line in verdicts(root) if line.startswith("unknown")]
    assert len(unknown) == 4
    assert "Run `alexprep stats" in unknown[0]


def test_archives_are_compared_by_their_md5(root, tmp_path):
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(b"torn")
    lines = verdicts(root, tmp_path)[-3:]
    assert lines[0] == f"unknown MD5 of ILSVRC2012_img_train.tar: it is not in {tmp_path}"
    assert lines[1] == (
        f"differs MD5 of ILSVRC2012_img_val.tar: {hashlib.md5(b'torn').hexdigest()}, "
        f"published {MD5['ILSVRC2012_img_val.tar']}"
    )
    facts = Facts(md5={"ILSVRC2012_img_val.tar": hashlib.md5(b"torn").hexdigest()})
    assert check_imagenet(root, tmp_path, facts)[-1].verdict == "ok"


def test_a_set_that_shard_wrote_is_compared_by_what_its_files_are(tmp_path):
    rng = np.random.default_rng(8)
    classes = ("n01440764", "n02105855", "n07583066")
    source = draw_classes(tmp_path / "source", rng, classes, each=4)
    (source / "train/n07583066/n07583066_647.JPEG").write_bytes(jpeg(photograph(rng, mode="CMYK")))
    photograph(rng).save(source / "train/n02105855/n02105855_2933.JPEG", "PNG")
    config = ShardConfig(size=64, shards={"train": 2, "validation": 1})
    shard(source, tmp_path / "made", config, RunOptions(workers=1))
    facts = replace(
        Facts(),
        wnids=classes,
        images={"train": 14, "validation": 12},
        per_class={"train": (4, 5), "validation": (4, 4)},
        fixed={"cmyk": frozenset({"n07583066_647"}), "png": frozenset({"n02105855_2933"})},
        validation={f"{wnid}_val_{n}": wnid for wnid in classes for n in range(4)},
    )
    lines = check_imagenet(tmp_path / "made", None, facts)
    assert [line.verdict for line in lines] == ["ok"] * 9 + ["unknown"] * 4
    whole = check_imagenet(tmp_path / "made")
    assert [line.verdict for line in whole[:6]] == [*["differs"] * 5, "ok"]
    # The only PNG of ImageNet is in this set too, but one CMYK file of 23.
    assert [line.verdict for line in whole[6:9]] == ["differs", "ok", "differs"]


def test_a_set_without_validation_images_is_unknown_there(root):
    edit(root, lambda raw: raw["splits"].pop("validation"))
    lines = [line for line in verdicts(root) if line.startswith("unknown")]
    assert "unknown validation images: the data set has no validation split" in lines
    assert "unknown CMYK files: a split is missing" in lines
    assert sum("validation" in line for line in lines) == 2
