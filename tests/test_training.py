"""The whole way from shards to errors and predictions, through DALI, as the commands call it."""

import json
import shutil
import signal
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.errors import RunError
from alexnet.training import checkpoint
from alexnet.training.metrics import read
from alexprep.dataset.stats import compute_stats
from alexprep.model.evaluation import EvalOptions, evaluate
from alexprep.model.predict import PredictOptions, predict
from alexprep.model.predictions import Predictions
from alexprep.model.training import TrainOptions, train
from alexprep.report import write_report
from pipelines.errors import DataError
from pipelines.format import Manifest
from tests.drawing import jpeg
from tests.forks import Fork
from tests.tarsets import Item, write_dataset

OPTIONS = TrainOptions(
    smoke=True,
    epochs=3,
    settings=("loader.batch=16", "train.log_steps=2", "train.keep=20", "train.lr=.005"),
)


def striped(rng, label, size=64):
    """Stripes that lie, stand or slant: nothing for a classifier of colours."""
    y, x = np.mgrid[:size, :size]
    along = (y, x, x + y)[label]
    wave = 128 + 100 * np.sin(along * rng.uniform(0.5, 0.9) + rng.uniform(0, 6))
    pixels = wave[:, :, None] + rng.normal(0, 20, (size, size, 3)) + rng.uniform(-20, 20, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def items(rng, count, prefix):
    return [
        Item(f"{prefix}_{n:04d}", jpeg(striped(rng, n % 3), 95, subsampling=2), n % 3)
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rng = np.random.default_rng(7)
    splits = {"train": items(rng, 90, "t"), "validation": items(rng, 31, "v")}
    root = write_dataset(tmp_path_factory.mktemp("data") / "stripes", splits, size=64)
    compute_stats(root)
    return root


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    torch.set_num_threads(1)  # other test processes and DALI share the cores
    train(dataset, run, replace(OPTIONS, epochs=8))
    return run


def weights(run):
    return checkpoint.load(checkpoint.steps(run)[-1]).parts["model"]


def test_a_run_learns_stripes_through_dali(trained):
    epochs = [record for record in read(trained) if record["kind"] == "epoch"]
    assert epochs[-1]["loss"] < 0.7 < epochs[0]["loss"]
    config = json.loads((trained / "config.json").read_text())
    assert config["recipe"]["train"]["lr"] == 0.005
    assert config["data"] == {**config["data"], "classes": 3, "images": 90, "size": 64}
    assert config["calls"][0]["machine"]["torch"].startswith(torch.__version__.partition("+")[0])


def test_evaluation_agrees_with_what_training_counted(trained, dataset):
    result = evaluate([trained], dataset, EvalOptions())
    best = checkpoint.load(checkpoint.best(trained)).meta["progress"]["best_error"]
    assert (result.images, result.top1, result.top5) == (31, pytest.approx(best), 0.0)
    assert sum(row.images for row in result.per_class()) == 31
    wrong = sum(row.top1 * row.images for row in result.per_class())
    assert wrong == pytest.approx(31 * result.top1)
    assert "31 images, 1 view" in result.table()
    assert result.class_table().count("\n") == 3


def test_ten_views_are_evaluated_image_by_image(trained, dataset):
    result = evaluate([trained], dataset, EvalOptions(views=10, batch=50))
    assert (result.images, result.views) == (31, 10)
    assert result.top1 <= 0.5
    assert json.loads(json.dumps(result.to_dict()))["top1_error"] == result.top1


def test_saved_predictions_stand_for_the_network_that_made_them(trained, dataset, tmp_path):
    kept = tmp_path / "a.predictions"
    first = evaluate([trained], dataset, EvalOptions(), save=kept)
    again = evaluate([kept], dataset, EvalOptions())
    both = evaluate([kept, trained], dataset, EvalOptions(weights=(1, 3)))
    assert first.ranks.tolist() == again.ranks.tolist() == both.ranks.tolist()
    assert len(both.members) == 2
    with pytest.raises(ValueError, match=r"are called \*\.predictions"):
        evaluate([kept], dataset, EvalOptions(), save=tmp_path / "a.npz")
    kept.write_bytes(b"nothing")
    with pytest.raises(RunError, match="is not a predictions file"):
        evaluate([kept], dataset, EvalOptions())


def test_every_changed_byte_of_saved_predictions_is_refused(trained, dataset, tmp_path, rng):
    kept = tmp_path / "a.predictions"
    evaluate([trained], dataset, EvalOptions(), save=kept)
    data = kept.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for place in (*range(8), *rng.choice(header, 150), *rng.choice(len(data), 50)):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        kept.write_bytes(changed)
        with pytest.raises(RunError, match=r"a\.predictions is not a predictions file") as caught:
            Predictions.load(kept)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": torch.tensor([0, 3])}, r"labels are not in 0\.\.2"),
        ({"labels": torch.tensor([-1, 0])}, r"labels are not in 0\.\.2"),
        ({"labels": torch.tensor([0])}, r"labels are torch.int64 \(1,\)"),
        ({"labels": torch.tensor([0.0, 1.0])}, "labels are torch.float32"),
        ({"probabilities": torch.zeros(2, 4).double()}, r"float64 \(2, 4\), not float64 \(2, 3\)"),
        ({"probabilities": torch.zeros(2, 3)}, "probabilities are torch.float32"),
        ({"views": 0}, "views are 0"),
        ({"split": None}, "Expected `str`"),
    ],
)
def test_predictions_that_do_not_fit_together_are_refused(tmp_path, change, reason):
    classes = tuple((f"n{n}", "") for n in range(3))
    fields = {"keys": ("a", "b"), "classes": classes, "views": 1, "split": "s", "dataset": "d"}
    tensors = {"probabilities": torch.full((2, 3), 1 / 3).double(), "labels": torch.tensor([0, 2])}
    path = tmp_path / "a.predictions"
    Predictions(**{**fields, **tensors, "source": "x", **change}).save(path)
    with pytest.raises(RunError, match=reason):
        Predictions.load(path)


def test_other_labels_count_any_right_class_and_leave_out_images_without(
    trained, dataset, tmp_path
):
    keys = [f"v_{n:04d}" for n in range(31)]
    labels = {key: [0, "n00000001", 2] for key in keys} | {keys[0]: []}
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(labels))
    result = evaluate([trained], dataset, EvalOptions(labels=path))
    assert (result.images, result.top1) == (30, 0.0)
    path.write_text(json.dumps({key: [n % 3] for n, key in enumerate(keys)}))
    same = evaluate([trained], dataset, EvalOptions(labels=path))
    assert same.top1 == evaluate([trained], dataset, EvalOptions()).top1
    path.write_text(json.dumps({key: [7] for key in keys}))
    with pytest.raises(RunError, match="v_0000: 7 is none of the 3 classes"):
        evaluate([trained], dataset, EvalOptions(labels=path))
    path.write_text('{"v_0000": [0.5]}')
    with pytest.raises(RunError, match=r"labels.json is damaged .*object of key -> labels"):
        evaluate([trained], dataset, EvalOptions(labels=path))


@pytest.mark.parametrize(
    ("wrong", "save", "complaint"),
    [
        ({"labels": "absent.json"}, None, "No such file"),
        ({"labels": "some.json"}, None, "no labels for 30 images"),
        (
            {"weights": (1.0, 2.0)},
            None,
            "Expected 1 weights, one a prediction and none below 0, got",
        ),
        ({}, "a.npz", r"called \*\.predictions"),
        ({}, "absent/a.predictions", "No such file"),
        ({}, "folder.predictions", "Is a folder"),
    ],
)
def test_what_is_wrong_is_said_before_the_networks_have_run(
    trained, dataset, tmp_path, wrong, save, complaint
):
    # No image of this copy decodes, so that an evaluation that begins ends with another error.
    root = shutil.copytree(dataset, tmp_path / "spoilt")
    for shard in root.glob("validation/*.tar"):
        shard.write_bytes(shard.read_bytes().replace(b"\xff\xd8\xff", b"\0\0\0"))
    with pytest.raises(DataError):
        evaluate([trained], root, EvalOptions())
    (tmp_path / "some.json").write_text('{"v_0000": [0]}')
    (tmp_path / "folder.predictions").mkdir()
    if "labels" in wrong:
        wrong = {"labels": tmp_path / wrong["labels"]}
    with pytest.raises((RunError, ValueError, OSError), match=complaint) as found:
        evaluate([trained], root, EvalOptions(**wrong), save=save and tmp_path / save)
    assert not isinstance(found.value, DataError)


def test_an_average_wants_the_same_images(trained, dataset, tmp_path):
    kept = tmp_path / "train.predictions"
    evaluate([trained], dataset, EvalOptions(split="train"), save=kept)
    with pytest.raises(RunError, match=r"90 images of .*/train, .*/validation has other ones \(31"):
        evaluate([kept, trained], dataset, EvalOptions())


def test_predict_names_classes_and_says_what_it_cannot_read(trained, tmp_path, rng):
    (tmp_path / "a.jpg").write_bytes(jpeg(striped(rng, 1).resize((300, 200)), 95))
    (tmp_path / "b.txt").write_text("no image")
    paths = [tmp_path / "a.jpg", tmp_path / "b.txt", tmp_path / "c"]
    image, text, missing = predict(trained, paths, PredictOptions(top=2))
    assert [wnid for wnid, _, _ in image.classes] != []
    assert 0.5 < sum(share for _, _, share in image.classes) <= 1
    assert len(image.classes) == 2
    assert text.problem
    assert "cannot be read" in missing.problem


def test_predict_sees_what_evaluation_sees(trained, dataset, tmp_path):
    manifest = Manifest.load(dataset)
    kept = tmp_path / "k.predictions"
    evaluate([trained], dataset, EvalOptions(views=10, backend="torch"), save=kept)
    there = Predictions.load(kept)
    rng = np.random.default_rng(7)
    items(rng, 90, "t")
    picture = items(rng, 31, "v")[5]
    (tmp_path / "p.jpg").write_bytes(picture.jpg)
    (found,) = predict(trained, [tmp_path / "p.jpg"], PredictOptions(top=3))
    by_wnid = {wnid: share for wnid, _, share in found.classes}
    expected = {
        wnid: float(there.probabilities[there.keys.index("v_0005"), label])
        for label, (wnid, _) in enumerate(manifest.classes)
    }
    # The image is compressed once more on its way, as shard would do.
    assert by_wnid == pytest.approx(expected, abs=0.05)


def test_the_same_command_goes_on_and_may_add_epochs(dataset, tmp_path):
    train(dataset, tmp_path / "once", replace(OPTIONS, settings=(*OPTIONS.settings, *CONSTANT)))
    two = replace(OPTIONS, epochs=1, settings=(*OPTIONS.settings, *CONSTANT))
    train(dataset, tmp_path / "twice", two)
    train(dataset, tmp_path / "twice", replace(two, epochs=3))
    for name, tensor in weights(tmp_path / "once").items():
        assert torch.equal(tensor, weights(tmp_path / "twice")[name]), name


CONSTANT = ("train.schedule=constant", "augment.lighting_epochs=none")

COMMAND = """
import sys, torch
from pathlib import Path
from tests.test_training import OPTIONS
from alexprep.model.training import train
from dataclasses import replace
torch.set_num_threads(1)
often = replace(OPTIONS, settings=(*OPTIONS.settings, "train.checkpoint_minutes=1e-9"))
raise SystemExit(train(Path(sys.argv[1]), Path(sys.argv[2]), often).exit_code)
"""


@pytest.mark.slow
def test_a_run_killed_at_random_instants_ends_with_the_same_weights(dataset, tmp_path, rng):
    torch.set_num_threads(1)
    train(dataset, tmp_path / "once", OPTIONS)
    command = [sys.executable, "-c", COMMAND, str(dataset), str(tmp_path / "twice")]
    for step in np.sort(rng.choice(np.arange(1, 17), 3, replace=False)):
        process = Fork(command)
        while (
            process.poll() is None and not checkpoint.step_path(tmp_path / "twice", step).exists()
        ):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert Fork(command).wait() == 0
    for name, tensor in weights(tmp_path / "once").items():
        assert torch.equal(tensor, weights(tmp_path / "twice")[name]), name


def test_another_recipe_in_the_folder_is_refused_with_the_difference(trained, dataset):
    changed = replace(OPTIONS, epochs=8, settings=(*OPTIONS.settings, "train.momentum=.8"))
    with pytest.raises(RunError, match=r"train.momentum was 0.9 and is 0.8"):
        train(dataset, trained, changed)
    with pytest.raises(RunError, match=r"train.epochs was 8 and is 2"):
        train(dataset, trained, replace(OPTIONS, epochs=2))


def test_a_folder_with_other_things_in_it_is_not_taken(dataset, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="not empty and holds no run"):
        train(dataset, tmp_path, OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_data_set_without_statistics_is_named_with_what_to_run(tmp_path, rng):
    splits = {"train": items(rng, 9, "t"), "validation": items(rng, 3, "v")}
    root = write_dataset(tmp_path / "bare", splits, size=64)
    with pytest.raises(DataError, match=f"alexprep stats {root}"):
        train(root, tmp_path / "run", OPTIONS)
    assert not (tmp_path / "run").exists()


def test_a_data_set_without_a_validation_split_has_two_remedies(tmp_path, rng):
    root = write_dataset(tmp_path / "data", {"train": items(rng, 40, "t")}, size=64)
    compute_stats(root)
    run = tmp_path / "run"
    with pytest.raises(DataError, match=r"--validation 10%`, or train with --no-validation\."):
        train(root, run, OPTIONS)
    plateau = (*OPTIONS.settings, "train.schedule=plateau")
    with pytest.raises(ValueError, match="nothing for the schedule 'plateau' to follow"):
        train(root, run, replace(OPTIONS, settings=plateau, validation=False))
    assert not run.exists()
    summary = train(root, run, replace(OPTIONS, epochs=1, validation=False))
    assert summary.best.samefile(summary.last)
    assert [record for record in read(run) if "top1" in record] == []
    page = write_report(run).read_text()
    assert "the run has no validation" in page


def test_a_missing_data_set_is_named(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        train(tmp_path / "none", tmp_path / "run", OPTIONS)


def test_a_device_that_is_not_here_is_named(dataset, tmp_path):
    with pytest.raises(RunError, match="There is no cuda:97 on this machine"):
        train(dataset, tmp_path / "run", replace(OPTIONS, devices=("cuda:97",)))
    with pytest.raises(ValueError, match="A device is auto, cpu or cuda:0"):
        train(dataset, tmp_path / "run", replace(OPTIONS, devices=("gpu",)))


def test_weights_of_another_run_are_copied_where_they_fit(trained, dataset, tmp_path, capfd):
    options = replace(OPTIONS, epochs=1, init_from=trained, recipe="six_conv")
    train(dataset, tmp_path / "fine", options)
    said = capfd.readouterr().err
    copied = next(line for line in said.splitlines() if line.startswith("copied from"))
    fresh = next(line for line in said.splitlines() if line.startswith("newly initialized"))
    assert "conv1.weight" in copied
    assert "fc8.weight" in copied
    assert "conv6.weight" in fresh


def test_a_checkpoint_of_other_classes_is_refused(trained, tmp_path, rng):
    root = write_dataset(tmp_path / "two", {"validation": items(rng, 4, "v")}, size=64, classes=4)
    text = (root / "manifest.json").read_text()
    (root / "manifest.json").write_text(text.replace('"n0000000', '"n1000000'))
    with pytest.raises(RunError, match=r"knows none of the 4 classes of .*; it knows 3 others"):
        evaluate([trained], root, EvalOptions())


def test_a_vanished_data_set_names_the_last_good_checkpoint(dataset, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    train(copy, tmp_path / "run", replace(OPTIONS, epochs=1))
    for tar in (copy / "train").iterdir():
        tar.write_bytes(tar.read_bytes()[:4096])
    with pytest.raises((RunError, DataError)) as caught:
        train(copy, tmp_path / "run", OPTIONS)
    assert "\n" not in str(caught.value)
