"""The plan of the working memory of exported C: where feature maps and scratch lie."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tinycifar.formats.integer import Map, Network, Step

ALIGNMENT = 8  # bytes
PLANS = 300  # of memory that are tried


def maps(network: Network) -> list[Map]:
    """All maps, that of the pixels first."""
    return [network.pixels, *(step.output for step in network.steps)]


def convolutions(network: Network) -> list[Step]:
    """The steps that are convolutions."""
    return [step for step in network.steps if step.kind == "conv"]


def taps(step: Step) -> int:
    """Weights of a filter, or of half of a mirrored one, filled up to a multiple of four."""
    size = int(step.weights[0].size) // (2 if step.mirrored else 1)
    return -(-size // 4) * 4


def scratch_bytes(step: Step) -> int:
    """Bytes for one position outside of the map, and for a patch at two positions."""
    inputs = step.inputs[0].channels // step.groups
    count = taps(step)
    vectors = -(-count // 16) * 16  # of int8 with MVE; otherwise int16
    return -(-inputs // 8) * 8 + (2 if step.mirrored else 1) * max(4 * count, 2 * vectors)


@dataclass(frozen=True)
class _Block:
    """A part of the working memory and the steps from `first` to `last` that need it."""

    key: object
    bytes: int
    first: int
    last: int


SUMS, SCORES = "sums", "scores"


@functools.lru_cache(maxsize=8)
def plan(network: Network) -> tuple[dict[object, int], int]:
    """Offsets of maps, of each convolution's scratch, by its step, of `SUMS` and `SCORES`; and the bytes needed.

    Blocks that are needed in the same step do not overlap. Blocks are placed one after the other, each at the lowest
    free offset; of several orders the one that needs least memory is taken.
    """
    end = len(network.steps)
    blocks = [_Block(item, item.bytes, item.first, item.last) for item in maps(network)]
    blocks += [_Block(step, scratch_bytes(step), *[step.output.first] * 2) for step in convolutions(network)]
    blocks += [_Block(SUMS, 4 * network.features.channels, end, end), _Block(SCORES, 4 * len(network.head), end, end)]
    needed = max(sum(item.bytes for item in blocks if item.first <= step <= item.last) for step in range(end + 1))
    generator = random.Random(0)
    order = sorted(blocks, key=lambda item: -item.bytes)
    best = _place(order)
    for _ in range(PLANS):
        if best[1] < needed + ALIGNMENT:  # no plan can be better
            break
        order = generator.sample(blocks, len(blocks))
        best = min(best, _place(order), key=lambda result: result[1])
    return best


def _place(blocks: Sequence[_Block]) -> tuple[dict[object, int], int]:
    offsets: dict[object, int] = {}
    placed: list[_Block] = []
    for block in blocks:
        others = sorted(
            (offsets[other.key], offsets[other.key] + other.bytes)
            for other in placed
            if other.first <= block.last and block.first <= other.last
        )
        offset = 0
        for start, stop in others:
            if offset + block.bytes <= start:
                break
            offset = max(offset, -(-stop // ALIGNMENT) * ALIGNMENT)
        offsets[block.key] = offset
        placed.append(block)
    return offsets, max(offsets[block.key] + block.bytes for block in placed)


def memory_bytes(network: Network) -> int:
    """Bytes of working memory at any address."""
    return plan(network)[1] + ALIGNMENT - 1
