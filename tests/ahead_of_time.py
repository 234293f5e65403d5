"""Kernels of Triton compiled for GPUs that are not here: their code and what it uses."""

import re
import subprocess
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
ALIGNED = [["tt.divisibility", 16]]


def compiled(kernel, constants, integers, capability, *, types=None, **options):
    """A kernel as its launcher compiles it.

    Pointers are to bfloat16, or as `types` has it; `integers` are arguments of 32 bits, or of 64
    where they need them, and a 1 among them is a constant. Options are num_warps and num_stages.
    """
    signature, values, attributes = {}, {}, {}
    for number, argument in enumerate(kernel.arg_names):
        if argument.endswith("_pointer"):
            signature[argument] = (types or {}).get(argument, "*bf16")
            attributes[(number,)] = ALIGNED
        elif argument in constants or integers[argument] == 1:
            signature[argument] = "constexpr"
            values[(number,)] = constants.get(argument, 1)
        else:
            signature[argument] = "i32" if abs(integers[argument]) < 2**31 else "i64"
            if integers[argument] % 16 == 0:
                attributes[(number,)] = ALIGNED
    source = ASTSource(kernel, signature, values, attributes)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=options)


def spills(kernel, folder):
    """Whether it keeps registers in memory."""
    return "STACK:0" not in _dump(kernel, "-res-usage", folder)


def instructions(kernel, folder):
    """The names of its instructions, in order."""
    code = _dump(kernel, "-sass", folder)
    return re.findall(
        r"^\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_.]+)", code, re.MULTILINE
    )


def _dump(kernel, option, folder):
    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    answer = subprocess.run([TOOL, option, binary], capture_output=True, text=True, check=True)
    return answer.stdout + answer.stderr
