"""What a step would ask of two GPUs, on tensors without memory (tests/fake_gpus.py)."""

import inspect
import json
import math
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from itertools import pairwise

import pytest

from alexnet.distributed import averaging
from alexnet.model import networks
from alexnet.model.columns import exchanges
from tests.fake_gpus import IMAGES

MAKERS = {
    name: function
    for name, function in inspect.getmembers(networks, inspect.isfunction)
    if [*inspect.signature(function).parameters] == ["classes"] and not name.startswith("_")
}
SPLIT = [
    name
    for name, function in MAKERS.items()
    if function().columns > 1 and function().lrn_across == "own"
]


@pytest.fixture(scope="module")
def results():
    command = [sys.executable, "-m", "tests.fake_gpus", *SPLIT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def steps(results):
    return results["steps"]


@pytest.fixture(scope="module")
def ranks(results):
    return results["ranks"]


def test_the_network_of_2012_and_its_variants_are_among_them():
    assert {"code2012", "paper", "six_conv", "no_communication"} <= set(SPLIT)


@pytest.mark.parametrize("name", SPLIT)
def test_two_devices_exchange_what_the_table_says_and_nothing_else(steps, name):
    config = getattr(networks, name)()
    forward, back = Counter(), Counter()
    for exchange in exchanges(config):
        if exchange.what != "publish":  # the logits and the labels stay on the first device
            shape = (IMAGES, *exchange.shape)
            forward[shape] += exchange.sent
            back[shape] += exchange.sent * exchange.returns
    forward[IMAGES, 3, config.crop, config.crop] += 1
    step = steps[name]
    for log, expected in (("crossed", forward + back), ("validation crossed", forward)):
        assert Counter(tuple(crossing[1]) for crossing in step[log]) == expected
        # Nothing but copies from one to the other: none computes with tensors of both.
        kinds = {(operator, *devices) for operator, *_, devices in step[log]}
        assert kinds == {("_to_copy", "gpu:0", "gpu:1")}


@pytest.mark.parametrize("name", SPLIT)
def test_what_crosses_between_two_devices_is_bfloat16_forward_and_back(steps, name):
    config = getattr(networks, name)()
    table = [exchange for exchange in exchanges(config) if exchange.what != "publish"]
    images = 2 * 3 * config.crop**2 * IMAGES
    forward = sum(2 * math.prod(exchange.shape) * exchange.sent * IMAGES for exchange in table)
    for log, passes in (("crossed", 2), ("validation crossed", 1)):
        crossings = steps[name][log]
        assert narrow(crossings)
        assert sum(sent for *_, (sent, _), _ in crossings) == images + passes * forward


def narrow(crossings):
    """Whether all of them take and give two bytes a value, of bfloat16."""
    return all(
        kind == "bfloat16" and sent == received == 2 * math.prod(shape)
        for _, shape, kind, (sent, received), _ in crossings
    )


def test_maps_that_cross_in_float32_are_noticed(steps):
    assert not narrow(steps["wide"]["crossed"])
    assert not narrow(steps["wide"]["validation crossed"])


@pytest.mark.parametrize("name", SPLIT)
def test_a_step_on_two_devices_does_not_wait_and_leaves_everything_where_it_belongs(steps, name):
    step = steps[name]
    assert step["waits"] == []
    assert step["velocities elsewhere"] == []
    assert step["results"] == ["gpu:0", "gpu:0"]


@pytest.mark.parametrize("name", SPLIT)
def test_both_directions_of_an_exchange_are_queued_before_parts_are_joined(steps, name):
    config = getattr(networks, name)()
    order = ["copy"]  # of the images
    for exchange in exchanges(config):
        if exchange.what == "gather":
            order += ["copy", "copy", "cat", "cat"]
        if exchange.what == "to first":
            order += ["copy", "cat"]
    assert steps[name]["validation order"] == order


@pytest.mark.parametrize("name", SPLIT)
def test_both_directions_of_an_exchange_run_at_once_after_what_they_copy(steps, name):
    step = steps[name]
    _images, *copies, first = step["validation copies"]
    gathers = [e for e in exchanges(getattr(networks, name)()) if e.what == "gather"]
    assert len(copies) == 2 * len(gathers)
    assert copies[::2] == copies[1::2]
    assert all(last[1] < then[0] for last, then in pairwise([*copies[::2], first]))
    assert step["races"] == []


def test_columns_that_mix_devices_are_noticed(steps):
    assert steps["mutant"] == "FakeTensorDeviceMismatchError"


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("name", SPLIT)
def test_what_crosses_between_two_processes_is_bfloat16_forward_and_back(ranks, name, replicas):
    for rank in ranks[f"{name} {replicas}"]:
        for collective, group, _peer, tensors in rank["exchanges"]:
            types = {dtype for _shape, dtype in tensors}
            # Gradients of replicas are added up in float32.
            expected = {"column": "torch.bfloat16", "replica": "torch.float32"}[group]
            assert types == {expected}, (collective, tensors)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("name", SPLIT)
def test_processes_exchange_in_one_order_and_never_wait(ranks, name, replicas):
    logs = ranks[f"{name} {replicas}"]
    assert [log["crossed"] + log["waits"] for log in logs] == [[]] * (2 * replicas)
    of_rank = [log["exchanges"] for log in logs]
    for replica in range(replicas):
        first, second = (of_group(of_rank[2 * replica + column], "column") for column in range(2))
        assert [opposite(exchange) for exchange in second] == first
        config = getattr(networks, name)()
        count = sum(exchange.sent and 1 + exchange.returns for exchange in exchanges(config))
        assert len(first) == count
    for column in range(2):
        sums = [of_group(of_rank[2 * replica + column], "replica") for replica in range(replicas)]
        assert all(one == sums[0] for one in sums)
        assert bool(sums[0]) == (replicas > 1)


@pytest.mark.parametrize("name", SPLIT)
def test_processes_cannot_wait_for_each_other_in_a_circle(ranks, name):
    # Also where a GPU works on one exchange at a time: then each waits for the one queued before.
    earlier = {}
    for rank, log in enumerate(ranks[f"{name} 2"]):
        replica, column = divmod(rank, 2)
        counts, last = Counter(), None
        for _, group, *_ in log["exchanges"]:
            members = (group, replica if group == "column" else column)
            exchange = (members, counts[members])
            counts[members] += 1
            earlier.setdefault(exchange, set()).update({last} - {None})
            last = exchange
    TopologicalSorter(earlier).prepare()  # CycleError


def of_group(exchanges, group):
    return [exchange for exchange in exchanges if exchange[1] == group]


def opposite(exchange):
    """What the first column does when the second does this; the peer of the other is not its."""
    name, group, peer, shapes = exchange
    if name in ("send", "recv"):
        return ["recv" if name == "send" else "send", group, 1, shapes]
    return [name, group, peer, shapes]


def test_gradients_are_summed_while_backward_still_runs(ranks):
    for rank in ranks["code2012 2"]:
        names = [exchange[1] for exchange in rank["exchanges"]]
        last = len(names) - 1 - names[::-1].index("column")
        # The images' count, and the dense layers, whose gradients are nearly all that is sent.
        count, *early = [
            exchange for exchange in rank["exchanges"][:last] if exchange[1] == "replica"
        ]
        assert count[3] == [[[1], "torch.float32"]]
        values = sum(exchange[3][0][0][0] for exchange in early)
        every = [exchange[3][0][0][0] for exchange in of_group(rank["exchanges"], "replica")]
        assert values > 0.9 * sum(every)
        assert max(every) * 4 > averaging.BUCKET_BYTES
