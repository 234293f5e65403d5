"""The one-device form against the layers of 2012 written out, and its modes of running."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from alexnet import build
from alexnet.model.networks import caffe, code2012, paper, smoke
from alexnet.model.spec import sizes

SMALL = smoke(code2012(), crop=48, classes=10)


def images_of(config, count=4, dtype=torch.float32):
    chance = torch.Generator().manual_seed(7)
    return torch.randn(count, 3, config.crop, config.crop, generator=chance, dtype=dtype) * 60


def lrn(x, alpha, k=2.0):
    return F.local_response_norm(x, 5, alpha, 0.75, k)


def by_hand(images, state, code):
    """layers-145.cfg (code) or section 3 of the paper, a column after the other, no dropout."""

    def layer(name, x, column=None, pad=0, stride=1):
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        if column is not None:
            weight, bias = weight.chunk(2)[column], bias.chunk(2)[column]
        return F.conv2d(x, weight, bias, stride, pad) if x.ndim == 4 else F.linear(x, weight, bias)

    def pool(x):
        return F.max_pool2d(x, 3, 2)

    if code:
        images = F.pad(images, (0, 3, 0, 3))
    maps = []
    for column in (0, 1):
        x = layer("conv1", images, column, stride=4)
        x = pool(lrn(x, 1e-4)).relu() if code else pool(lrn(x.relu(), 5e-4))
        x = layer("conv2", x, column, pad=2).relu()
        x = lrn(x, 1e-4 if code else 5e-4)
        if code:
            x = x / (1 + 1e-3 * F.avg_pool2d(x**2, 5, 1, 2)) ** 0.75
        maps.append(pool(x))
    both = torch.cat(maps, dim=1)
    maps = []
    for column in (0, 1):
        x = layer("conv3", both, column, pad=1).relu()
        x = layer("conv4", x, column, pad=1).relu()
        maps.append(pool(layer("conv5", x, column, pad=1)).relu())
    x = torch.cat(maps, dim=1).flatten(1)
    return layer("fc8", layer("fc7", layer("fc6", x).relu()).relu())


@pytest.mark.parametrize(("network", "code"), [(code2012, True), (paper, False)])
def test_it_computes_what_the_published_layers_compute(network, code):
    config = replace(network(), dropout=0.0)
    model = build(config, seed=1).double().eval()
    images = images_of(config, count=2, dtype=torch.float64)
    with torch.no_grad():
        expected = by_hand(images, model.state_dict(), code)
        assert expected.std() > 0.001
        torch.testing.assert_close(model(images), expected, rtol=1e-10, atol=1e-12)


def test_every_map_has_the_size_of_the_table():
    config = replace(code2012(), dropout=0.0)
    model = build(config)
    seen = {}
    for name in model.layers:
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.update({name: output.shape[1:]})
        )
    with torch.no_grad():
        model(images_of(config, count=1))
    for size in sizes(config):
        assert seen[size.name].numel() == size.neurons
        assert size.conv_side == (seen[size.name][-1] if len(seen[size.name]) == 3 else 1)


def test_columns_meet_where_the_table_says_and_nowhere_before():
    model = build(replace(SMALL, dropout=0.0), seed=1)
    images = images_of(SMALL)
    seen = {}
    for name in ("conv2", "conv3"):
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.update({name: output.detach()})
        )
    with torch.no_grad():
        model(images)
        before = dict(seen)
        second = model.get_parameter("conv1.weight").chunk(2)[1]
        second *= 2.0
        model(images)
    half = before["conv2"].shape[1] // 2
    assert torch.equal(seen["conv2"][:, :half], before["conv2"][:, :half])
    assert not torch.equal(seen["conv2"][:, half:], before["conv2"][:, half:])
    assert not torch.equal(seen["conv3"][:, : half // 2], before["conv3"][:, : half // 2])


def test_caffes_norm_looks_across_the_columns():
    config = smoke(replace(caffe(), lrn_alpha=1.0, pad_end=0), crop=48, classes=10)
    across = build(config, seed=1)
    own = build(replace(config, lrn_across="own"), seed=1)
    with torch.no_grad():
        assert not torch.equal(across(images_of(config)), own(images_of(config)))


def test_the_last_two_hidden_layers_lose_half_of_their_units_in_training():
    model = build(replace(SMALL, act="tanh"), seed=1)
    seen = {}
    model.get_submodule("fc7").register_forward_pre_hook(lambda _, x: seen.update(fc7=x[0]))
    for name, x in (("fc8", model.features(images_of(SMALL))), ("fc7", seen["fc7"])):
        # Nothing but a mask makes tanh units exactly 0.
        assert (x == 0).double().mean().item() == pytest.approx(0.5, abs=0.03), name
    assert not (model.eval().features(images_of(SMALL)) == 0).any()


def test_images_of_another_size_are_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"\(N, 3, 48, 48\), got \(2, 3, 56, 56\)"):
        build(SMALL)(torch.zeros(2, 3, 56, 56))


def run(model, images, labels, *, amp=False):
    """Logits and the gradient of conv1 of one training step."""
    model.set_dropout_position(0)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
    loss.backward()
    name = next(name for name, _ in model.named_parameters() if name.endswith("conv1.weight"))
    return logits.detach().double(), model.get_parameter(name).grad.clone()


@pytest.fixture(scope="module")
def reference():
    # float64: in float32 one pixel of a pool that rounding exchanges for its equal moves conv1's
    # gradient by a hundredth, and the order of the sums, so the rounding, is the processor's
    images, labels = images_of(SMALL, dtype=torch.float64), torch.arange(4)
    return (
        images,
        labels,
        {
            form: run(build(SMALL, form=form, seed=1).double(), images, labels)
            for form in ("grouped", "columns")
        },
    )


def relative(one, other):
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("form", ["grouped", "columns"])
def test_channels_last_changes_nothing_but_rounding(form, reference):
    images, labels, expected = reference
    model = build(SMALL, form=form, seed=1).double().to(memory_format=torch.channels_last)
    logits, grad = run(model, images.to(memory_format=torch.channels_last), labels)
    assert relative(logits, expected[form][0]) < 1e-12
    assert relative(grad, expected[form][1]) < 1e-11


@pytest.mark.parametrize("form", ["grouped", "columns"])
def test_bf16_autocast_stays_within_two_percent_in_the_logits(form, reference):
    images, labels, expected = reference
    logits, grad = run(build(SMALL, form=form, seed=1), images.float(), labels, amp=True)
    assert relative(logits, expected[form][0]) < 0.02
    # Rounding to 8 bits changes which of near-equal values a pool takes: conv1 is farthest back.
    assert relative(grad, expected[form][1]) < 0.3


# aot_eager traces and differentiates as inductor does, without the compiler's minute; inductor
# itself imports parts of torch that torch has deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", ["grouped", "columns"])
def test_compiled_it_is_the_same_and_reads_the_dropout_position_anew(form, backend, reference):
    images, labels, expected = reference
    model = build(SMALL, form=form, seed=1).double()
    torch.compiler.reset()
    # Fullgraph: nothing in the network may fall back to Python.
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    loss = F.cross_entropy(compiled(images), labels)
    loss.backward()
    assert (
        relative(
            model.get_parameter(
                "conv1.weight" if form == "grouped" else "column0.conv1.weight"
            ).grad,
            expected[form][1],
        )
        < 1e-11
    )
    first = compiled(images).detach()
    assert relative(first, expected[form][0]) < 1e-12
    model.set_dropout_position(1000)
    assert relative(compiled(images).detach(), first) > 0.01


def test_a_form_that_is_none_is_refused():
    with pytest.raises(ValueError, match="'grouped' or 'columns', got 'column'"):
        build(SMALL, form="column")
