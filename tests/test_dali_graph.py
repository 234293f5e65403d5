"""The graph of a GPU run against DALI's schemas, which know every operator without a GPU.

What needs one: shapes and types at run time (tests/test_dali_gpu.py).
"""

import itertools

import numpy as np
import pytest
from nvidia.dali import backend, fn

from pipelines import dali
from pipelines.augment import AugmentSpec, colours
from pipelines.config import LoaderConfig
from pipelines.normalize import Preprocess

COMBINATIONS = list(
    itertools.product(
        ("mixed", "auto", "cpu"), (1, 10), ("float32", "bfloat16", "uint8"), (False, True)
    )
)
REGISTERED = {
    "cpu": set(backend.RegisteredCPUOps(True)),
    "gpu": set(backend.RegisteredGPUOps(True)),
    "mixed": set(backend.RegisteredMixedOps(True)),
}


def graph(decode, views, dtype, channels_last, regions=False, **resizing):
    """The outputs of the pipeline, which is described and not built."""
    spec = AugmentSpec(mean="none", lighting=0, divide=1, **resizing)
    preprocess = Preprocess(spec, colours(spec, None), views, dtype, channels_last, regions)
    config = LoaderConfig(device="cuda:0", threads=2, batch=8, decode=decode)
    feed = dali._Feed(iter(()), lambda batch: [])
    with dali._pipeline(config) as pipeline:
        return [dali._on_gpu(feed, preprocess, config)], pipeline


def operators(outputs):
    """All operators that the outputs come from."""
    seen, nodes = {}, list(outputs)
    while nodes:
        operator = nodes.pop().source
        if operator is not None and id(operator) not in seen:
            seen[id(operator)] = operator
            nodes += [node for node in operator._inputs if hasattr(node, "source")]
    return list(seen.values())


@pytest.mark.parametrize(("decode", "views", "dtype", "channels_last"), COMBINATIONS)
def test_every_operator_exists_on_its_device_with_its_arguments(
    decode, views, dtype, channels_last
):
    outputs, pipeline = graph(decode, views, dtype, channels_last)
    assert pipeline.device_id == 0
    names = checked(outputs)
    decoder = {name: device for name, device in names.items() if name.startswith("decoders")}
    whole = views == 10 or decode != "cpu"
    expected = "decoders__Image" if whole else "decoders__ImageCrop"
    assert decoder == {expected: "cpu" if decode == "cpu" else "mixed"}
    assert names["CropMirrorNormalize"] == "gpu"


def test_a_gpu_decodes_as_the_cpu_does_and_every_image_alike():
    outputs, _ = graph("mixed", 1, "float32", True)
    (decoder,) = (
        op for op in operators(outputs) if "decoders" in getattr(op._op, "schema_name", "")
    )
    arguments = str(decoder._spec)
    # libjpeg-turbo's interpolation of chroma; all of a batch by one decoder, whose rounding would
    # else depend on an image's number in it; and memory for all sizes before training begins.
    for line in (
        *("jpeg_fancy_upsampling: True", "hw_decoder_load: 1.0"),
        *("preallocate_width_hint: 256", "preallocate_height_hint: 256"),
    ):
        assert line in arguments


def checked(outputs):
    """The device of each operator by its name, all of them known to DALI there."""
    assert [node.device for node in outputs] == ["gpu"]
    names = {}
    for operator in operators(outputs):
        name = getattr(operator._op, "schema_name", "ExternalSource")
        device = operator._op._device
        assert name in REGISTERED[device]
        backend.GetSchema(name).CheckArgs(operator._spec)
        names[name] = device
    return names


@pytest.mark.parametrize("decode", ["mixed", "cpu"])
@pytest.mark.parametrize("views", [1, 10])
@pytest.mark.parametrize(
    "resizing",
    [{}, {"area": (0.08, 1)}, {"resize": 232, "interpolation": "bicubic"}],
    ids=["sizes that differ", "area", "resize"],
)
def test_boxes_are_cut_and_resized_by_operators_that_a_gpu_has(decode, views, resizing):
    outputs, _ = graph(decode, views, "float32", True, regions=True, **resizing)
    names = checked(outputs)
    if decode == "cpu":
        assert names["decoders__ImageSlice"] == "cpu"
        assert "Slice" not in names
    else:
        assert names["decoders__Image"] == "mixed"
        assert names["Slice"] == "gpu"
    assert names.get("Resize") == ("gpu" if resizing else None)
    assert names["CropMirrorNormalize"] == "gpu"


def test_what_dali_does_not_know_is_refused_at_once():
    outputs, pipeline = graph("mixed", 1, "float32", True)
    with pipeline:
        jpg = fn.external_source(source=lambda: [np.zeros(4, np.uint8)], batch=True)
        with pytest.raises(KeyError):
            fn.decoders.image(jpg, device="mixed", fancy_upsampling=True)
        with pytest.raises(RuntimeError, match=r'incompatible device "gpu"'):
            fn.crop_mirror_normalize(*outputs, device="cpu")


def test_a_gpu_gets_all_cores_and_a_cpu_leaves_some_to_the_network(monkeypatch):
    monkeypatch.setattr("pipelines.config._cores", lambda: 16)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert (LoaderConfig().thread_count, LoaderConfig().reader_count) == (4, 4)
    on_gpu = LoaderConfig(device="cuda:1")
    assert (on_gpu.thread_count, on_gpu.reader_count) == (16, 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (on_gpu.thread_count, on_gpu.reader_count) == (4, 4)
    chosen = LoaderConfig(device="cuda:0", threads=3, readers=5)
    assert (chosen.thread_count, chosen.reader_count) == (3, 5)
