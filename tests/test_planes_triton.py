"""The kernel that makes crops from planes on a GPU: its values by Triton's interpreter, its code
compiled ahead of time for GPUs that are not here."""

import os
import subprocess
import sys

import pytest

from tests.forks import Fork

pytest.importorskip("triton", reason="Triton comes for Linux alone")

INTERPRETED = """
import numpy as np, torch
from tests.test_planes import SIZE, noisy_jpeg, planes_of
from pipelines.planes import rgb_from_planes
from pipelines.planes_triton import crop_planes
from pipelines.resident import ResidentStore

rng = np.random.default_rng(5)
CROP, SIDE, N = 50, 53, 5
images = [planes_of(noisy_jpeg(seed, 90, 60)) for seed in range(4)]
rows = np.array([0, 3, 1, 2, 3])

def store(*lengths):
    # Apart from each other in memory, as on several GPUs.
    ends = np.cumsum(lengths)
    parts = [np.stack(images[end - n : end]) if n else np.empty((0, len(images[0])), np.uint8)
             for n, end in zip(lengths, ends)]
    return ResidentStore(tuple(torch.from_numpy(part) for part in parts), np.zeros(4))

origins = torch.from_numpy(np.stack(
    [rng.integers(0, SIZE - CROP + 1, N), rng.integers(0, SIZE - CROP + 1, N),
     rng.integers(0, 2, N)], axis=1).astype(np.int32))
origins[0] = torch.tensor([0, 0, 0])
origins[1] = torch.tensor([SIZE - CROP, SIZE - CROP, 1])
units = rng.uniform(0.5, 2, (N, 3)).astype(np.float32)
added = rng.uniform(-50, 50, (N, 3)).astype(np.float32)
levels = torch.from_numpy(np.concatenate([units, added], axis=1))
whole = rng.uniform(90, 140, (SIZE, SIZE, 3)).astype(np.float32)
centre = (SIZE - CROP) // 2
def crops(held, dtype, mean, moves):
    out = torch.full((N, 3, SIDE, SIDE), 7.0, dtype=dtype).to(memory_format=torch.channels_last)
    mean_HWC = torch.from_numpy(np.ascontiguousarray(mean))
    addresses = torch.from_numpy(held.addresses(rows))
    crop_planes(addresses, origins, levels, mean_HWC, out, size=SIZE, crop=CROP, mean_moves=moves)
    return out

one = store(4)
for mean, moves in ((whole, False), (whole, True), (whole[:1, :1], False)):
    for dtype in (torch.float32, torch.bfloat16):
        out = crops(one, dtype, mean, moves)
        for n in range(N):
            y, x, mirror = origins[n].tolist()
            pixels = rgb_from_planes(images[rows[n]], SIZE)[y:y+CROP, x:x+CROP].astype(np.float32)
            if len(mean) > 1 and moves:
                pixels = pixels - mean[y:y+CROP, x:x+CROP]
            pixels = pixels[:, ::-1] if mirror else pixels
            if len(mean) == 1:
                pixels = pixels - mean
            elif not moves:
                pixels = pixels - mean[centre:centre+CROP, centre:centre+CROP]
            expected = torch.from_numpy(pixels * units[n] + added[n]).permute(2, 0, 1)
            if dtype == torch.bfloat16:
                # Eight bits: the interpreter cuts off the others, a GPU rounds (the test below).
                expected = (expected.view(torch.int32) & -65536).view(torch.float32).to(dtype)
            assert torch.equal(out[n, :, :CROP, :CROP], expected), (n, moves, dtype)
        assert not out[:, :, CROP:].any() and not out[:, :, :, CROP:].any()
expected = crops(one, torch.float32, whole, True)
for parts in ((1, 3), (3, 1), (0, 4, 0), (2, 1, 1)):
    assert torch.equal(crops(store(*parts), torch.float32, whole, True), expected), parts
"""


def test_crops_are_the_cpus_bit_for_bit_in_every_mean_and_dtype():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    assert Fork([sys.executable, "-c", INTERPRETED], env=environment).wait() == 0


def compiled(capability, dtype):
    """The kernel's binary for a GPU of this compute capability, as ILSVRC's training takes it."""
    import triton  # noqa: PLC0415 - it is looked for above
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.compiler import ASTSource  # noqa: PLC0415

    from pipelines.planes_triton import BLOCK, _crop_planes  # noqa: PLC0415

    types = {"addresses": "*i64", "origins": "*i32", "levels": "*fp32", "mean": "*fp32"}
    types["out"] = dtype
    values = {"SIZE": 256, "CROP": 224, "SIDE": 227, "MEAN": 256, "MOVES": False, "BLOCK": BLOCK}
    signature, constants, attributes = {}, {}, {}
    for number, name in enumerate(_crop_planes.arg_names):
        signature[name] = types.get(name, "constexpr")
        if name in types:
            attributes[(number,)] = [["tt.divisibility", 16]]
        else:
            constants[(number,)] = values[name]
    source = ASTSource(_crop_planes, signature, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"enable_fp_fusion": False})


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype", ["*bf16", "*fp32"])
def test_the_kernel_compiles_without_spills_and_without_fused_rounding(capability, dtype, tmp_path):
    from pathlib import Path  # noqa: PLC0415

    import triton  # noqa: PLC0415

    kernel = compiled(capability, dtype)
    assert "fma.rn.f32" not in kernel.asm["ptx"]
    assert dtype == "*fp32" or "cvt.rn.bf16" in kernel.asm["ptx"]
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    usage = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True)
    assert "STACK:0" in usage.stdout + usage.stderr
