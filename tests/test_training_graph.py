"""The step on inputs that stay in place, and the compiled one, against the plain step on a CPU.

Capturing itself needs a GPU: tests/test_step_gpu.py.
"""

import re
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from alexnet import build
from alexnet.errors import RunError
from alexnet.model.networks import code2012, smoke
from alexnet.training.config import TrainConfig
from alexnet.training.graph import StaticStep, captured_state
from alexnet.training.optim import full_weights, layer_weights, set_rates, sgd
from alexnet.training.run import Data, RunContext
from alexnet.training.step import CompiledModel, prepare_model, train_step, use_fast_kernels
from alexnet.training.trainer import fit
from tests import test_train
from tests.fake_gpus import move

NETWORK = smoke(code2012(), crop=48, classes=10)
# Epochs end with two odd batches; the first epoch is a resumed one, which begins with its last two.
SIZES = (7, 8, 12, 12, 7, 8, 12)


def images(size, number):
    chance = torch.Generator().manual_seed(number)
    pixels = torch.randn(size, 3, 48, 48, generator=chance) * 60
    labels = torch.randint(0, 10, (size,), generator=chance)
    return pixels.to(memory_format=torch.channels_last), labels


def trained(wrap, precision, rounded=False):
    """Weights, losses and the states of the steps; conv1 is frozen before the fifth."""
    config = TrainConfig(lr=1e-3, precision=precision)
    model = build(NETWORK, seed=4)
    prepare_model(model, config)
    optimizer = sgd(model, config)
    if rounded:
        optimizer.round_weights(layer_weights(model), torch.bfloat16)
        assert {p.ndim > 1 for p in optimizer.masters} == {True}
        assert len(optimizer.masters) == len(NETWORK.layers)
    step = wrap(lambda batch: train_step(model, optimizer, batch, config))
    losses, states = [], []
    for number, size in enumerate(SIZES):
        set_rates(
            optimizer,
            lambda layer, _kind, number=number: (number < 4 or layer != "conv1") / (1 + number),
            velocity_has_lr=True,
        )
        model.set_dropout_position(number * 1000)
        states.append(captured_state(model, optimizer))
        losses.append(float(step(images(size, number))))
    return full_weights(model, optimizer), losses, states


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_on_inputs_that_stay_equals_the_plain_one_in_every_bit(precision):
    addresses = set()

    def wrap(step):
        def noted(batch):
            if len(batch[1]) == 12:
                addresses.add((batch[0].data_ptr(), batch[1].data_ptr()))
            return step(batch)

        return StaticStep(noted)

    state, losses, _ = trained(wrap, precision)
    plain, plain_losses, _ = trained(lambda step: step, precision)
    assert losses == plain_losses
    assert all(torch.equal(state[name], value) for name, value in plain.items())
    assert len(addresses) == 1


def test_rounded_weights_of_the_network_change_no_bit_of_what_is_learned():
    state, losses, _ = trained(lambda step: step, "bfloat16", rounded=True)
    plain, plain_losses, _ = trained(lambda step: step, "bfloat16")
    assert losses == plain_losses
    assert all(torch.equal(state[name], value) for name, value in plain.items())
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_a_step_is_another_one_when_a_layer_is_frozen_and_the_same_when_rates_change():
    _, _, states = trained(lambda step: step, "float32")
    assert len(set(states[:4])) == 1
    assert len(set(states[4:])) == 1
    assert states[3] != states[4]


def test_odd_batches_run_uncompiled_and_full_ones_stay_in_their_graph():
    graphs, calls = [], []

    def count(graph, examples):
        number = len(graphs)
        graphs.append([x for x in examples if isinstance(x, torch.SymInt)])

        def run(*inputs):
            calls.append(number)
            return graph.forward(*inputs)

        return run

    torch.compiler.reset()
    model = build(NETWORK, seed=4)
    prepare_model(model, TrainConfig())
    compiled = CompiledModel(model, mode=None, backend=count)
    expected = []
    for size in (12, 12, 12, 7, 8) * 2:
        before = len(calls)
        pixels, _ = images(size, size)
        model.set_dropout_position(0)
        logits = compiled(pixels)
        assert torch.allclose(logits, model(pixels), rtol=1e-4, atol=1e-4)
        expected.append(calls[before:])
    first = expected[0]
    assert first
    assert expected == [first, first, first, [], []] * 2
    # A run that is resumed at the end of an epoch begins with a smaller batch.
    torch.compiler.reset()
    compiled = CompiledModel(model, mode=None, backend=count)
    for size in (7, 12, 12):
        compiled(images(size, size)[0])
    # Of one size: not one of them takes a symbol, which serves every size and none as well.
    assert graphs == [[]] * len(graphs)


def test_a_graph_where_none_can_be_is_refused_in_a_line(tmp_path):
    config = replace(test_train.CONFIG, cuda_graph=True)
    data = Data(train=test_train.data().train, validation=test_train.Evaluation())
    text = "train.cuda_graph needs a single GPU and a single process, this network is on cpu."
    with pytest.raises(RunError, match=re.escape(text)):
        fit(test_train.network(), config, data, RunContext(folder=tmp_path))


@pytest.mark.parametrize("change", [{"compile": "graphs"}, {"precision": "float64"}])
def test_a_graph_of_a_graph_and_one_with_constant_rates_are_refused(change):
    with pytest.raises(ValueError, match=re.escape("TrainConfig.cuda_graph")):
        TrainConfig(cuda_graph=True, **change)


def test_fast_kernels_are_tf32_and_chosen_by_trial():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    try:
        use_fast_kernels()
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.benchmark
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.benchmark = before[1]


def test_a_network_on_a_cpu_keeps_float32_products():
    before = torch.get_float32_matmul_precision()
    prepare_model(build(NETWORK), TrainConfig())
    assert torch.get_float32_matmul_precision() == before


def test_a_step_leaves_no_gradients_that_the_next_would_have_to_clear_and_add_to():
    config = TrainConfig(lr=1e-3)
    model = build(NETWORK, seed=4)
    optimizer = sgd(model, config)
    train_step(model, optimizer, images(4, 0), config)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all("momentum_buffer" in optimizer.state[p] for p in model.parameters())


def test_a_network_on_a_gpu_gets_the_fast_kernels():
    # Tensors without memory say that they are on a GPU, which is all that is asked of them.
    model = torch.nn.Linear(3, 2, device="meta")
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    try:
        with FakeTensorMode():
            move(model, "cuda:0")
            prepare_model(model, TrainConfig())
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.benchmark
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.benchmark = before[1]
