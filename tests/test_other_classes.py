"""A network is evaluated on data sets whose classes are not its own, in order or in number.

The oracle is NumPy: the network's probabilities for each image, taken once on a data set of its own
classes, and the names of the classes.
"""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import alexnet
from alexnet.errors import RunError
from alexnet.training import checkpoint
from alexprep.cli import cli
from alexprep.model.classes import match_classes
from alexprep.model.evaluation import EvalOptions, evaluate
from alexprep.model.predictions import Predictions
from alexprep.model.recipes import RecipeInputs, make_recipe
from alexprep.sources.synsets import ilsvrc2012
from tests.drawing import jpeg, photograph
from tests.tarsets import Item, write_dataset

OFFICIAL = [(synset.wnid, synset.names) for synset in ilsvrc2012()]
KNOWN = OFFICIAL[:8]
STRANGE = [("n99999998", "unicorn"), ("n99999999", "griffin")]


def save_network(path, classes):
    """A checkpoint of a network that has learned nothing but answers each image differently."""
    recipe = make_recipe("code2012", RecipeInputs(classes=len(classes), source=64, smoke=True))
    generator = torch.Generator().manual_seed(3)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * 0.1
        for name, tensor in alexnet.build(recipe.model).named_parameters()
    }
    raw = json.loads(json.dumps(asdict(recipe)))
    raw["augment"] |= {"mean": [120.0, 110.0, 100.0], "lighting": 0.0}
    meta = {"recipe": raw, "classes": [list(entry) for entry in classes], "stats": None}
    checkpoint.save(path, meta, {"model": weights})
    return path


def write_classes(root, images, classes, names=None):
    """A data set of `classes` with those of the images (key -> (JPEG, wnid)) that are of them.

    `names` are what its class folders are called, if not by their wnids.
    """
    wnids = [wnid for wnid, _ in classes]
    items = [
        Item(key, jpg, wnids.index(wnid)) for key, (jpg, wnid) in images.items() if wnid in wnids
    ]
    write_dataset(root, {"validation": items}, size=64, name=root.name, classes=len(classes))
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["classes"] = [list(entry) for entry in names or classes]
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(11)
    wnids = [wnid for wnid, _ in [*KNOWN, *STRANGE]]
    return {
        f"image_{n:03d}": (jpeg(photograph(rng, 64, 64), 95, subsampling=2), wnids[n % len(wnids)])
        for n in range(60)
    }


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp("network") / "net.safetensors", KNOWN)


@pytest.fixture(scope="module")
def own(images, network, tmp_path_factory):
    """Predictions on a data set of the network's own classes, in its order."""
    folder = tmp_path_factory.mktemp("own")
    root = write_classes(folder / "own", images, KNOWN)
    evaluate([network], root, EvalOptions(), save=folder / "own.predictions")
    return folder / "own.predictions"


def expected_errors(path, images, classes, among):
    """Top-1 and top-5 error of the images of `classes`, where `among` can be answered."""
    saved = Predictions.load(path)
    columns = [n for n, (wnid, _) in enumerate(KNOWN) if wnid in {wnid for wnid, _ in among}]
    answers = [KNOWN[n][0] for n in columns]
    wrong = []
    for key, row in zip(saved.keys, saved.probabilities.numpy()[:, columns], strict=True):
        wnid = images[key][1]
        if wnid in {wnid for wnid, _ in classes}:
            order = [answers[n] for n in np.argsort(-row, kind="stable")]
            wrong.append((wnid not in order[:1], wnid not in order[:5]))
    return tuple(np.mean(wrong, axis=0)), len(wrong)


def check_errors(result, own, images, classes):
    (top1, top5), count = expected_errors(own, images, classes, KNOWN)
    assert (result.images, result.top1, result.top5) == (count, pytest.approx(top1), top5)
    present, _ = expected_errors(own, images, classes, classes)
    assert tuple(result.present) == pytest.approx(present)
    return result.to_dict()


def test_some_of_the_classes_are_scored_among_all_and_among_themselves(
    network, own, images, tmp_path
):
    some = [KNOWN[6], KNOWN[1], KNOWN[3]]
    root = write_classes(tmp_path / "some", images, some)
    result = evaluate([network], root, EvalOptions())
    scores = check_errors(result, own, images, some)
    assert result.top5 > result.present.top5 == 0
    assert (scores["classes"], scores["classes_present"]) == (8, 3)
    assert (scores["images_left_out"], scores["classes_unknown"]) == (0, [])
    assert scores["top1_error_present"] == result.present.top1
    assert {row.wnid for row in result.per_class()} == {wnid for wnid, _ in some}
    text = CliRunner().invoke(cli, ["eval", str(network), "--data", str(root)]).output
    assert "Among all 8 classes of the network:" in text
    assert "Among the 3 classes that some has:" in text
    assert text.count(f"{result.present.top1:12.2%} {result.present.top5:12.2%}") == 1


def test_the_order_of_the_classes_does_not_matter(network, own, images, tmp_path):
    root = write_classes(tmp_path / "turned", images, KNOWN[::-1])
    result = evaluate([network], root, EvalOptions())
    scores = check_errors(result, own, images, KNOWN)
    assert scores["top1_error"] == scores["top1_error_present"]
    assert "Among" not in result.table()


def test_images_of_unknown_classes_are_counted_in_a_line_and_nowhere_else(
    network, own, images, tmp_path
):
    some = [STRANGE[1], KNOWN[2], KNOWN[0], STRANGE[0]]
    root = write_classes(tmp_path / "more", images, some)
    result = evaluate([network], root, EvalOptions(views=1, batch=7))
    scores = check_errors(result, own, images, some)
    assert (scores["images_left_out"], scores["images"]) == (12, 12)
    assert scores["classes_unknown"] == ["n99999999", "n99999998"]
    assert (
        "Left out: 12 images of 2 classes that the network does not know (n99999999, n99999998)."
        in result.table()
    )


def test_folders_with_names_are_matched_by_name(network, own, images, tmp_path):
    some = [KNOWN[0], KNOWN[1], KNOWN[7], STRANGE[0]]
    names = [("tench",) * 2, ("Carassius_auratus",) * 2, ("COCK",) * 2, ("unicorn",) * 2]
    root = write_classes(tmp_path / "named", images, some, names)
    result = evaluate([network], root, EvalOptions())
    scores = check_errors(result, own, images, some)
    assert (scores["classes_matched_by"], scores["classes_unknown"]) == ("name", ["unicorn"])
    assert "Classes are matched by name." in result.table()


def test_numbered_folders_are_the_labels_of_the_network(network, own, images, tmp_path):
    """ImageNet-V2 has folders 0..999, whose order as text is 0, 1, 10, 100."""
    turned = KNOWN[::-1]
    names = [(str(7 - n), str(7 - n)) for n in range(8)]
    root = write_classes(tmp_path / "v2", images, turned, names)
    result = evaluate([network], root, EvalOptions())
    scores = check_errors(result, own, images, KNOWN)
    assert scores["classes_matched_by"] == "number"
    assert "The class folders 0 to 7 are read as labels of the network." in result.table()


def test_saved_predictions_are_matched_too(network, own, images, tmp_path):
    some = [KNOWN[5], KNOWN[2], STRANGE[0]]
    root = write_classes(tmp_path / "some", images, some)
    saved = tmp_path / "some.predictions"
    first = evaluate([network], root, EvalOptions(), save=saved)
    for members in ([saved], [own], [own, saved], [network, own], [saved, network]):
        result = evaluate(members, root, EvalOptions())
        check_errors(result, own, images, some)
        assert result.ranks.tolist() == first.ranks.tolist()
        assert result.left_out == 6
    assert Predictions.load(saved).classes == tuple(KNOWN)
    others = write_classes(tmp_path / "others", images, [KNOWN[4], KNOWN[2]])
    with pytest.raises(RunError, match=r"predicts 6 images of .*others/validation, which has 12"):
        evaluate([saved], others, EvalOptions())


def test_an_average_needs_networks_of_the_same_classes(network, images, tmp_path):
    other = save_network(tmp_path / "other.safetensors", KNOWN[::-1])
    root = write_classes(tmp_path / "own", images, KNOWN)
    with pytest.raises(RunError, match=r"knows 8 classes, .*other.safetensors knows others"):
        evaluate([network, other], root, EvalOptions())


def test_a_data_set_without_a_known_class_is_refused_before_anything_runs(
    network, images, tmp_path
):
    root = write_classes(tmp_path / "strange", images, STRANGE)
    (root / "validation").rename(tmp_path / "shards")  # so that reading would say something else
    with pytest.raises(RunError) as caught:
        evaluate([network], root, EvalOptions())
    assert "knows none of the 2 classes of" in str(caught.value)
    assert "n99999998, n99999999" in str(caught.value)
    assert KNOWN[0][0] in str(caught.value)


def test_a_split_without_known_images_is_refused(network, images, tmp_path):
    root = write_classes(tmp_path / "strange", images, STRANGE, [*STRANGE[:1], ("tench", "")])
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["splits"]["validation"]["counts"][1] = 0
    (root / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"has no images of the 1 classes that .* knows"):
        evaluate([network], root, EvalOptions())


def test_other_labels_need_the_classes_they_were_made_for(network, images, tmp_path):
    root = write_classes(tmp_path / "some", images, KNOWN[:2])
    (tmp_path / "real.json").write_text("{}")
    with pytest.raises(RunError, match=r"real.json replaces the labels of .*same classes"):
        evaluate([network], root, EvalOptions(labels=tmp_path / "real.json"))


def label_of(network, dataset, tmp_path):
    match = match_classes(tuple(network), tuple(dataset), "net", tmp_path)
    return match.label.tolist(), match.basis


def test_imagenet_v2_names_the_labels_of_2012_to_any_of_its_networks(tmp_path):
    folders = sorted((str(n), str(n)) for n in range(1000))
    labels, basis = label_of(OFFICIAL, folders, tmp_path)
    assert (labels, basis) == ([int(name) for name, _ in folders], "number")
    some = [OFFICIAL[n] for n in (999, 5, 217)]
    labels, _ = label_of(some, folders, tmp_path)
    assert {
        name: label for (name, _), label in zip(folders, labels, strict=True) if label > -1
    } == {
        "999": 0,
        "5": 1,
        "217": 2,
    }


@pytest.mark.parametrize(
    "numbers",
    [range(200), range(1, 1001), [5, 7]],
    ids=["only some", "from one", "with gaps"],
)
def test_numbers_that_may_mean_anything_are_refused(tmp_path, numbers):
    with pytest.raises(RunError, match="knows none of the"):
        label_of(OFFICIAL, [(str(n), str(n)) for n in numbers], tmp_path)


def test_a_name_of_two_classes_names_neither(tmp_path):
    cranes = [n for n, (_, names) in enumerate(OFFICIAL) if names == "crane"]
    assert len(cranes) == 2
    labels, basis = label_of(OFFICIAL, [("crane", "crane"), ("tench", "tench")], tmp_path)
    assert (labels, basis) == ([-1, 0], "name")


def test_a_wnid_is_never_matched_by_its_name(tmp_path):
    labels, basis = label_of(KNOWN, [("n88888888", "tench"), KNOWN[3]], tmp_path)
    assert (labels, basis) == ([-1, 3], "wnid")


def test_two_names_of_one_class_are_refused(tmp_path):
    with pytest.raises(RunError, match="'goldfish' and 'Carassius auratus', which are both n01443"):
        label_of(KNOWN, [("goldfish", ""), ("Carassius auratus", "")], tmp_path)


def test_a_network_of_named_classes_is_matched_to_wnids(tmp_path):
    labels, _ = label_of([("cock", "cock"), ("tench", "tench")], KNOWN, tmp_path)
    assert labels == [1, -1, -1, -1, -1, -1, -1, 0]


def test_numbers_with_zeros_in_front_are_the_same_numbers(tmp_path):
    labels, basis = label_of(
        [("0", "0"), ("1", "1"), ("10", "10"), ("2", "2")], [("02", "02"), ("10", "10")], tmp_path
    )
    assert (labels, basis) == ([3, 2], "name")
