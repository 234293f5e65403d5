"""The networks by name: what the authors' code ran, what the paper says, what others made of it.

Sources: layers-145.cfg and its neighbours in the released code (computerhistory/
AlexNet-Source-Code), the text of Krizhevsky et al. 2012, bvlc_alexnet's prototxt, and torchvision.
docs/notes/differences.md says where they differ and why.
"""

import math
from dataclasses import replace

from alexnet.model.spec import Conv, Dense, Layer, ModelConfig, Stage, sizes, with_rows

LRN_FIRST: tuple[Stage, ...] = ("lrn", "pool", "act")
LRN_AFTER: tuple[Stage, ...] = ("act", "lrn", "pool")


def code2012(classes: int = 1000) -> ModelConfig:
    """layers-145.cfg, the net of the published 40.7/18.2: 60,965,224 parameters."""
    return ModelConfig(
        layers=(
            # The norm sees linear values there: the neuron follows the pooling.
            Conv(name="conv1", out=96, kernel=11, stride=4, sees="all", then=LRN_FIRST),
            Conv(
                name="conv2",
                out=256,
                kernel=5,
                pad=2,
                then=("act", "lrn", "spatial", "pool"),
                bias=1.0,
            ),
            Conv(name="conv3", out=384, kernel=3, pad=1, sees="all", sd=0.03),
            Conv(name="conv4", out=384, kernel=3, pad=1, sd=0.03, bias=1.0),
            Conv(name="conv5", out=256, kernel=3, pad=1, then=("pool", "act"), sd=0.03, bias=1.0),
            *_head(classes),
        )
    )


def _head(classes: int) -> tuple[Layer, ...]:
    return (
        Dense(name="fc6", out=4096),
        Dense(name="fc7", out=4096),
        Dense(name="fc8", out=classes, then=(), bias=0.0),
    )


def paper(classes: int = 1000) -> ModelConfig:
    """The text read literally: sd .01 everywhere, ReLU then LRN then pool, alpha not divided by n.

    Crops of 227, as most articles have it: the only size with which the text's 55 outputs come
    out without padding.
    """
    code = with_rows(
        code2012(classes),
        conv1={"then": LRN_AFTER},
        conv2={"then": LRN_AFTER},
        conv3={"sd": 0.01},
        conv4={"sd": 0.01},
        conv5={"sd": 0.01, "then": ("act", "pool")},
    )
    return replace(code, crop=227, pad_end=0, lrn_alpha=5e-4)


def one_gpu(classes: int = 1000) -> ModelConfig:
    """layers-145-half.cfg, the paper's comparison on one GPU: 59,798,312 parameters."""
    widths = {"conv1": 48, "conv2": 128, "conv3": 192, "conv4": 192}
    narrow = {name: {"out": out} for name, out in widths.items()}
    return with_rows(replace(code2012(classes), columns=1), **narrow)


def six_conv(classes: int = 1000) -> ModelConfig:
    """layers-146.cfg, the net of the starred rows: a sixth convolution after the last pooling."""
    code = code2012(classes)
    sixth = Conv(name="conv6", out=256, kernel=3, pad=1, sees="all", sd=0.03, bias=1.0)
    return replace(code, layers=(*code.layers[:5], sixth, *code.layers[5:]))


def ungrouped(classes: int = 1000) -> ModelConfig:
    """All maps see all maps, 96-256-384-384-256: 62,378,344 parameters, as articles count."""
    return replace(code2012(classes), columns=1)


def caffe(classes: int = 1000) -> ModelConfig:
    """bvlc_alexnet: crop 227, k 1, LRN across both groups, biases .1, sd .005 in fc6 and fc7."""
    tenth = {"bias": 0.1}
    text = with_rows(
        paper(classes),
        conv2=tenth,
        conv4=tenth,
        conv5=tenth,
        fc6={"sd": 0.005, **tenth},
        fc7={"sd": 0.005, **tenth},
    )
    return replace(text, lrn_alpha=1e-4, lrn_k=1.0, lrn_across="all", dropout_kind="inverted")


def torchvision(classes: int = 1000) -> ModelConfig:
    """The alexnet of torchvision (the net of "one weird trick", 2014): 61,100,840 parameters.

    No groups, no LRN, dropout before fc6 and fc7, PyTorch's default start, and inputs divided
    by torchvision's sd (0.229, 0.224, 0.225 of 255).
    """
    pool: tuple[Stage, ...] = ("act", "pool")
    return ModelConfig(
        columns=1,
        pad_end=0,
        input_sd=(58.395, 57.12, 57.375),
        dropout_kind="inverted",
        layers=(
            Conv(name="conv1", out=64, kernel=11, stride=4, pad=2, then=pool, sd=None, bias=None),
            Conv(name="conv2", out=192, kernel=5, pad=2, then=pool, sd=None, bias=None),
            Conv(name="conv3", out=384, kernel=3, pad=1, sd=None, bias=None),
            Conv(name="conv4", out=256, kernel=3, pad=1, sd=None, bias=None),
            Conv(
                name="conv5",
                out=256,
                kernel=3,
                pad=1,
                then=(*pool, "dropout"),
                sd=None,
                bias=None,
            ),
            Dense(name="fc6", out=4096, sd=None, bias=None),
            Dense(name="fc7", out=4096, then=("act",), sd=None, bias=None),
            Dense(name="fc8", out=classes, then=(), sd=None, bias=None),
        ),
    )


def no_lrn(classes: int = 1000) -> ModelConfig:
    """layers-148.cfg: without both LRNs and without the spatial norm, as the paper's delta."""
    return with_rows(
        code2012(classes), conv1={"then": ("pool", "act")}, conv2={"then": ("act", "pool")}
    )


def no_overlap(classes: int = 1000) -> ModelConfig:
    """layers-147.cfg: pools 2/2, and paddings that keep the last maps at 13 and 6."""
    code = with_rows(code2012(classes), conv2={"pad": 1}, conv5={"pad": 0})
    return replace(code, pool_size=2, pool_stride=2)


def no_communication(classes: int = 1000) -> ModelConfig:
    """layers-150.cfg: the columns meet in the last layer only.

    The file has 160 maps a column in conv2 and 4096 units a column in fc6; that fc7 keeps 2048 a
    column is inferred.
    """
    own = {"sees": "own"}
    return with_rows(
        code2012(classes),
        conv2={"out": 320},
        conv3=own,
        fc6={"out": 8192, **own},
        fc7=own,
    )


def no_dropout(classes: int = 1000) -> ModelConfig:
    """The code's net without dropout."""
    return replace(code2012(classes), dropout=0.0)


def tanh(classes: int = 1000) -> ModelConfig:
    """The code's net with tanh neurons."""
    return replace(code2012(classes), act="tanh")


def four_conv(classes: int = 1000) -> ModelConfig:
    """The code's net without conv4: the paper's depth remark, of which no config is known."""
    code = code2012(classes)
    return replace(code, layers=tuple(row for row in code.layers if row.name != "conv4"))


def smoke(config: ModelConfig, crop: int = 56, classes: int | None = None) -> ModelConfig:
    """The same topology for CPUs: a third of the width, and conv1 made for small crops.

    Up to 112 pixels conv1 is 5x5 with stride 2, so that a crop of 56 gives maps of 27, 13, 6 and
    3 a side; larger crops keep 11x11 with stride 4. Narrow layers add up fewer terms: every sd
    is multiplied by sqrt(terms of the full layer / terms here), which gives each layer the
    signal it has in the full network, so that learning rate .01 and inputs of 0..255 serve here
    too.
    """
    first = {"kernel": 5, "stride": 2, "pad": 0} if crop <= 112 else {}
    narrow: dict[str, dict[str, object]] = {}
    for row in config.layers[:-1]:
        out = max(row.out // SMOKE, config.columns)
        narrow[row.name] = {"out": out - out % config.columns}
    narrow[config.layers[0].name] |= first
    if classes is not None:
        narrow[config.layers[-1].name] = {"out": classes}
    small = replace(with_rows(config, **narrow), crop=crop, pad_end=0 if first else config.pad_end)
    start: dict[str, dict[str, object]] = {}
    for row, full, narrowed in zip(config.layers, sizes(config), sizes(small), strict=True):
        if row.sd is not None:
            gain = math.sqrt(math.prod(full.weight[1:]) / math.prod(narrowed.weight[1:]))
            start[row.name] = {"sd": row.sd * gain}
    return with_rows(small, **start)


SMOKE = 3  # one of so many maps and units is kept in smoke sizes
