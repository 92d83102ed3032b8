"""The random words of dropout on the CPU, of rows and columns beyond those that a test of an op can have."""

import ctypes
from functools import cache

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.building import CSRC, LANGUAGE, ROOT, build_shared

from ssept_ext.ops.dropout import philox4x32_10

GUARD = 0xDEADBEEF


@cache
def library():
    sources = [CSRC / "cpu" / "philox.cpp", CSRC / "cpu" / "simd.cpp"]
    flags = [*LANGUAGE, "-O2", f"-I{CSRC.relative_to(ROOT)}", "-fopenmp-simd"]
    commands = [
        (source, flags) for source in [ROOT / "tests" / "ops" / "philox_words.cpp", *sources]
    ]
    return ctypes.CDLL(str(build_shared("philox", commands, flags, sorted(CSRC.rglob("*.h")))))


def native(first_row, row_step, rows, first_quad, quads, site, seed):
    count = 4 * quads * rows
    words = np.full(count + library().slack() + 16, GUARD, np.uint32)
    library().philox_words(
        words.ctypes.data_as(ctypes.c_void_p),
        *map(ctypes.c_int64, (first_row, row_step, rows, first_quad, quads)),
        ctypes.c_uint32(site),
        ctypes.c_int64(seed),
    )
    assert (words[-16:] == GUARD).all(), "written beyond the slack"
    return torch.from_numpy(words[:count].astype(np.int64)).view(rows, quads, 4)


def by_definition(first_row, row_step, rows, first_quad, quads, site, seed):
    row = (first_row + row_step * torch.arange(rows))[:, None].expand(rows, quads)
    quad = (first_quad + torch.arange(quads)).expand(rows, quads)
    low = 0xFFFFFFFF
    counter = (quad, row & low, (row >> 32) & low, torch.full_like(row, site))
    seed = torch.tensor(seed)
    return torch.stack(philox4x32_10(counter, (seed & low, (seed >> 32) & low)), -1)


blocks = st.tuples(
    st.one_of(st.integers(0, 2**40), st.integers(2**32 - 40, 2**32)),  # first row
    st.integers(1, 9),  # row step
    st.integers(1, 70),  # rows
    st.integers(0, 2**30),  # first quad
    st.integers(1, 70),  # quads
    st.integers(0, 2**32 - 1),  # site
    st.integers(-(2**63), 2**63 - 1),  # seed
)


@settings(max_examples=150)
@given(blocks)
def test_words_are_those_of_the_definition(block):
    assert torch.equal(native(*block), by_definition(*block))
