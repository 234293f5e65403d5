"""Local response normalisation on a CPU: a block that fits the cache goes through all steps.

nn.LocalResponseNorm makes a pass over main memory for every operation, calls pow for every value
and keeps several tensors for backward. Here a block of a few hundred kilobytes goes all the way
before the next is read; a window's sum is a few additions of shifted views; d ** -0.75 is
rsqrt(d) * sqrt(rsqrt(d)). Only the input is kept: the denominator is cheaper to compute again
than to read back. docs/notes/network.md has the measurements.

With x the input: d = k + alpha / size * (sum of x * x over the window), y = x * d ** -beta.
Blocks are (rows, C, P): a contiguous NCHW tensor is read as rows of C channels of P = H * W
pixels, a channels_last one as N * H * W rows of C channels of one pixel. Sums run over the
flattened and padded block, so the same contiguous additions serve both.
"""

import torch
from torch import Tensor

from alexnet.model.spec import Lrn

# Values of one block. Of 48 Ki to 576 Ki this was the fastest on a core with 2 MiB of second
# cache: five float32 buffers of it nearly fill that.
BLOCK = 96 * 1024


def forward(x: Tensor, groups: int, norm: Lrn) -> Tensor:
    """The normalised x, laid out as x, which must be dense."""
    y = torch.empty_like(x)
    blocks = _blocks(x, groups)
    squares = _Windows(blocks[0], norm.size, fill=norm.k / norm.size)
    for x_block, y_block in zip(blocks, _blocks(y, groups), strict=True):
        x_float = x_block.to(squares.dtype)
        _, power = _denominators(x_float, squares, norm)
        torch.mul(x_float, power, out=y_block)
    return y


def backward(x: Tensor, g: Tensor, groups: int, norm: Lrn) -> Tensor:
    """The gradient at x: g d^-beta - 2 alpha beta / size * x * (sum of g x d^(-beta-1))."""
    dx = torch.empty_like(x)
    g = g.contiguous(memory_format=memory_format(x))
    blocks = _blocks(x, groups)
    squares = _Windows(blocks[0], norm.size, fill=norm.k / norm.size)
    shares = _Windows(blocks[0], norm.size, fill=0.0)
    direct = torch.empty_like(blocks[0], dtype=squares.dtype)
    factor = -2 * norm.alpha * norm.beta / norm.size
    for x_block, g_block, dx_block in zip(
        blocks, _blocks(g, groups), _blocks(dx, groups), strict=True
    ):
        rows = len(x_block)
        x_float = x_block.to(squares.dtype)
        d, power = _denominators(x_float, squares, norm)
        torch.mul(g_block, power, out=direct[:rows])
        share = shares.values(rows)
        torch.mul(direct[:rows], x_float, out=share)
        share /= d
        torch.addcmul(direct[:rows], x_float, shares.sums(rows), value=factor, out=dx_block)
    return dx


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout of x of the two that are dense here."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _blocks(x: Tensor, groups: int) -> tuple[Tensor, ...]:
    """Views (rows, C, P) of about BLOCK values that together are x."""
    channels = x.shape[1] // groups
    if x.is_contiguous():
        flat = x.view(x.shape[0] * groups, channels, -1)
    else:
        flat = x.permute(0, 2, 3, 1).view(-1, channels, 1)
    return torch.split(flat, max(BLOCK // (channels * flat.shape[2]), 1))


def _denominators(x: Tensor, squares: "_Windows", norm: Lrn) -> tuple[Tensor, Tensor]:
    """Of a block: d, and d ** -beta; both live in the buffers of `squares`."""
    rows = len(x)
    # k / size stands in the padding too, so that every sum of `size` terms contains k.
    torch.addcmul(squares.fill, x, x, value=norm.alpha / norm.size, out=squares.values(rows))
    d = squares.sums(rows)
    return d, squares.power(rows, norm.beta)


class _Windows:
    """A padded block and the sums of `size` neighbouring channels, in buffers used again."""

    def __init__(self, block: Tensor, size: int, fill: float) -> None:
        rows, self.channels, self.pixels = block.shape
        self.half = size // 2
        # bf16 has too few digits for sums of squares.
        self.dtype = torch.promote_types(block.dtype, torch.float32)
        shape = (rows, self.channels + 2 * self.half, self.pixels)
        self.fill = torch.tensor(fill, dtype=self.dtype)
        self.padded = torch.full(shape, fill, dtype=self.dtype)
        # Ones, for the values after the last sum are never written and yet raised to powers.
        self.total, self.spare, self.powers = torch.ones(3, self.padded.numel(), dtype=self.dtype)

    def values(self, rows: int) -> Tensor:
        return self.padded[:rows, self.half : self.half + self.channels]

    def sums(self, rows: int) -> Tensor:
        """Sums of the windows around each of `values`: those in pairs first, then the last."""
        flat = self.padded[:rows].view(-1)
        step, count = self.pixels, flat.numel() - 2 * self.half * self.pixels
        total = self.total[:count]
        if self.half == 0:
            return self._block(torch.add(flat, 0, out=total), rows)
        pairs = torch.add(flat[:-step], flat[step:], out=self.spare[: flat.numel() - step])
        last = flat[2 * self.half * step :]
        torch.add(pairs[:count], last, out=total)
        for pair in range(2, 2 * self.half, 2):
            total += pairs[pair * step : pair * step + count]
        return self._block(self.total[: flat.numel()], rows)

    def power(self, rows: int, beta: float) -> Tensor:
        """The last sums ** -beta."""
        count = self.padded[:rows].numel()
        d, root, out = self.total[:count], self.spare[:count], self.powers[:count]
        if beta == 0.75:
            torch.rsqrt(d, out=root)
            torch.sqrt(root, out=out).mul_(root)
        else:
            torch.pow(d, -beta, out=out)
        return self._block(out, rows)

    def _block(self, flat: Tensor, rows: int) -> Tensor:
        return flat.view(rows, -1, self.pixels)[:, : self.channels]
