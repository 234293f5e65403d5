import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from alexnet.errors import RunError
from alexnet.training import checkpoint
from alexnet.training.one_device import load_weights


def write(path, value=1.0):
    parts = {"model": {"fc.weight": torch.full((2, 3), value)}, "chance": {"cpu": torch.arange(3)}}
    checkpoint.save(path, {"note": "hello"}, parts)
    return path


def test_what_was_saved_comes_back(tmp_path):
    saved = checkpoint.load(write(tmp_path / "a.safetensors"), ("model", "chance"))
    assert torch.equal(saved.parts["model"]["fc.weight"], torch.full((2, 3), 1.0))
    assert torch.equal(saved.parts["chance"]["cpu"], torch.arange(3))
    assert saved.meta["note"] == "hello"


def test_the_file_is_plain_safetensors_for_other_programs(tmp_path):
    assert set(load_file(write(tmp_path / "a.safetensors"))) == {"model/fc.weight", "chance/cpu"}


def test_channels_last_weights_come_back_with_their_values(tmp_path):
    weight = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    checkpoint.save(tmp_path / "a", {}, {"model": {"conv1.weight": weight}})
    assert torch.equal(checkpoint.load(tmp_path / "a").parts["model"]["conv1.weight"], weight)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_cut_off_file_is_refused_in_one_line(tmp_path, length):
    path = write(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(RunError, match="damaged") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = write(tmp_path / "a.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match="'model' has changed"):
        checkpoint.load(path, ("model", "chance"))


PARTS = ("model", "velocity", "chance", "stats")


def write_all_parts(path):
    """A small checkpoint with what a run puts into one."""
    weights = {"conv1.weight": torch.randn(2, 3, 2, 2), "conv1.bias": torch.randn(2)}
    meta = {
        "recipe": {"model": {"classes": 2}, "name": "köln"},
        "classes": [["n01440764", "tench, Tinca tinca"], ["n01443537", "goldfish"]],
        "progress": {"epoch": 3, "steps": 38, "totals": [1, 8, 2.5, 0.25, 0.0]},
        "loader": {"epoch": 3, "step": 4},
    }
    velocity = {name: tensor / 8 for name, tensor in weights.items()}
    parts = {"model": weights, "velocity": velocity, "chance": {"cpu": torch.arange(9)}}
    checkpoint.save(path, meta, {**parts, "stats": {}})
    return path


def contents(path):
    """All of a checkpoint as plain values, without its sums; None if it is refused in one line."""
    try:
        file = checkpoint.load(path, PARTS)
    except RunError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert message.startswith(str(path))
        assert "\n" not in message
        return None
    parts = {part: {name: t.tolist() for name, t in file.parts[part].items()} for part in PARTS}
    return {name: value for name, value in file.meta.items() if name != "crc32"}, parts


def test_every_flipped_bit_of_a_header_is_refused(tmp_path):
    path = write_all_parts(tmp_path / "a.safetensors")
    data = path.read_bytes()
    expected = contents(path)
    header = 8 + int.from_bytes(data[:8], "little")
    bits = random.Random(15).sample(range(64, 8 * header), 3000)
    refused = 0
    for bit in [*range(64), *bits]:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        result = contents(path)
        assert result in (None, expected), (bit, changed[bit // 8 - 20 : bit // 8 + 20])
        refused += result is None
    assert refused == 3064


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "[]", "7", '"x"', "{}", '{"version": 1}', '{"version": "1"}'),
        *('{"version": 1, "crc32": 7}', '{"version": 1, "crc32": {"model": {}}}'),
        *("[" * 100_000, '{"version": 1, "crc32": {"header": "00000000"}, "x": NaN}'),
    ],
)
def test_json_that_no_run_writes_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "a.safetensors"
    save_file({"model/w": torch.zeros(2)}, path, {"alexprep": text})
    assert contents(path) is None


def without_header_crc(path):
    """The file as the first alexprep wrote it."""
    file = checkpoint.load(path, PARTS)
    sums = {part: crc for part, crc in file.meta["crc32"].items() if part != checkpoint.HEADER}
    tensors = {f"{part}/{name}": t for part in PARTS for name, t in file.parts[part].items()}
    save_file(tensors, path, {"alexprep": json.dumps({**file.meta, "crc32": sums})})
    return path


def test_a_file_without_a_crc_of_its_header_is_read_and_gets_one_when_written(tmp_path):
    path = write_all_parts(tmp_path / "a.safetensors")
    expected = contents(path)
    assert contents(without_header_crc(path)) == expected
    old = checkpoint.load(path, PARTS)
    assert checkpoint.HEADER not in old.meta["crc32"]
    checkpoint.save(path, old.meta, old.parts)
    assert contents(path) == expected
    assert checkpoint.HEADER in checkpoint.load(path).meta["crc32"]


def test_a_class_that_looks_like_the_crc_is_not_read_as_one(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"classes": [['"header": "00000000"', ""]], "header": "12345678"}, {})
    assert checkpoint.load(path, ()).meta["header"] == "12345678"


def test_numbers_that_json_has_not_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        checkpoint.save(tmp_path / "a.safetensors", {"loss": float("nan")}, {})
    assert not list(tmp_path.iterdir())


def test_a_safetensors_file_of_others_is_refused(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(RunError, match="no checkpoint of alexprep"):
        checkpoint.load(tmp_path / "other.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RunError, match=str(tmp_path / "none")):
        checkpoint.load(tmp_path / "none")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write(tmp_path / "a.safetensors")
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(_full_disk(path), {}, {"model": {"w": torch.zeros(3)}})
    assert checkpoint.load(path).meta["note"] == "hello"
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def _full_disk(path):
    """The path, with /dev/full where the checkpoint is written before it is renamed."""
    path.with_name(f"{path.name}.partial").symlink_to("/dev/full")
    return path


def test_another_network_is_refused_with_the_differences():
    model = nn.Sequential(nn.Linear(3, 2))
    weights = {"0.weight": torch.zeros(4, 3), "extra.bias": torch.zeros(1)}
    with pytest.raises(RunError) as caught:
        load_weights(model, weights, "run/best.safetensors")
    for difference in (
        "0.weight is (4, 3), not (2, 3)",
        "0.bias is missing",
        "extra.bias is unknown",
    ):
        assert difference in str(caught.value)


def test_a_run_folder_means_its_best_checkpoint_or_its_latest(tmp_path):
    folder = tmp_path / checkpoint.FOLDER
    folder.mkdir()
    with pytest.raises(RunError, match="without checkpoints"):
        checkpoint.resolve(tmp_path)
    old, new = (write(checkpoint.step_path(tmp_path, n), n) for n in (5, 10))
    assert checkpoint.resolve(tmp_path) == new
    checkpoint.mark_best(tmp_path, old)
    best = checkpoint.load(checkpoint.resolve(tmp_path))
    assert best.parts["model"]["fc.weight"][0, 0] == 5


def test_pruning_keeps_the_latest_and_the_best(tmp_path):
    (tmp_path / checkpoint.FOLDER).mkdir()
    for number in (5, 90, 100, 2000):
        write(checkpoint.step_path(tmp_path, number))
        if number == 5:
            checkpoint.mark_best(tmp_path, checkpoint.step_path(tmp_path, 5))
    (tmp_path / checkpoint.FOLDER / "step-00003000.safetensors.partial").write_bytes(b"half")
    checkpoint.prune(tmp_path, 2)
    left = sorted(path.name for path in (tmp_path / checkpoint.FOLDER).iterdir())
    assert left == [checkpoint.BEST, "step-00000100.safetensors", "step-00002000.safetensors"]
