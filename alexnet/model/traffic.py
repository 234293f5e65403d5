"""What columns that live apart send each other, counted from the table of a network."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from alexnet.model.spec import Conv, ModelConfig, sizes


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """What is sent before one layer.

    Attributes:
        before: the layer that wants it; "loss" for the logits.
        what: its name in alexnet.distributed.mesh.Team.sent.
        shape: of one image's part, as one process sends it to one other.
        sent: how many times one image's part is sent, forward.
        returns: whether as much comes back with the gradients.
    """

    before: str
    what: str
    shape: tuple[int, ...]
    sent: int
    returns: bool = True

    @property
    def values(self) -> int:
        """Sent for one image of a training step, by all processes of a replica."""
        return math.prod(self.shape) * self.sent * (1 + self.returns)


def exchanges(config: ModelConfig) -> Iterator[Exchange]:
    """In the order of a forward pass. The logits come last: 2012 left them on the first GPU."""
    others = config.columns - 1
    part: tuple[int, ...] = ()
    for row, size in zip(config.layers, sizes(config), strict=True):
        if row is config.layers[-1]:
            yield Exchange(before=row.name, what="to first", shape=part, sent=others)
        elif part and row.sees == "all":
            sent = config.columns * others
            yield Exchange(before=row.name, what="gather", shape=part, sent=sent)
        side = (size.side, size.side) if isinstance(row, Conv) else ()
        part = (row.out // config.columns, *side)
    logits = (config.classes,)
    yield Exchange(before="loss", what="publish", shape=logits, sent=others, returns=False)
