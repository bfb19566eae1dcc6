"""The plan of the working memory of exported C: where feature maps and scratch lie."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tinycifar.formats.integer import Map, Network, Step

ALIGNMENT = 8  # bytes
PLANS = 300  # of memory that are tried
OVERREAD = 3  # bytes behind the last channel, as depthwise convolutions read four channels at a time


def maps(network: Network) -> list[Map]:
    """All maps, that of the pixels first."""
    return [network.pixels, *(step.output for step in network.steps)]


def convolutions(network: Network) -> list[Step]:
    """The steps that are convolutions."""
    return [step for step in network.steps if step.kind == "conv"]


def has_depthwise(network: Network) -> bool:
    """Whether one of its convolutions is depthwise."""
    return any(step.depthwise for step in network.steps)


def taps(step: Step) -> int:
    """Weights of a filter, or of half of a mirrored one, filled up to a multiple of four."""
    size = int(step.weights[0].size) // (2 if step.mirrored else 1)
    return -(-size // 4) * 4


def scratch_bytes(step: Step) -> int:
    """Bytes for one position outside of the map, and for a patch at two positions.

    For a depthwise convolution that is a patch's offsets, as they are and flipped.
    """
    inputs = step.inputs[0].channels if step.depthwise else step.inputs[0].channels // step.groups
    outside = -(-inputs // 8) * 8
    if step.depthwise:
        return outside + 2 * 4 * step.kernel**2
    count = taps(step)
    vectors = -(-count // 16) * 16  # of int8 with MVE; otherwise int16
    return outside + (2 if step.mirrored else 1) * max(4 * count, 2 * vectors)


@dataclass(frozen=True)
class _Part:
    """A map or scratch, and the steps from `first` to `last` that need it."""

    key: object
    bytes: int
    first: int
    last: int

    def meets(self, other: _Part) -> bool:
        """Whether a step needs both."""
        return self.first <= other.last and other.first <= self.last


_Block = list[_Part]  # what lies at the same offset, one after the other
SUMS, SCORES = "sums", "scores"


def overwritten(step: Step) -> Map | None:
    """The input that the output of a step may overwrite, value by value; None if there is none.

    No later step needs that input, and the step reads a value before it writes to its place.
    """
    one_by_one = step.kind == "conv" and (step.kernel, step.stride, step.padding, step.groups) == (1, 1, 0, 1)
    for item in step.inputs if one_by_one or step.kind in ("add", "pool") else []:
        if item.last == step.output.first and step.output.channels <= item.channels:
            return item
    return None


@functools.lru_cache(maxsize=8)
def plan(network: Network) -> tuple[dict[object, int], int]:
    """Offsets of maps, of each convolution's scratch, by its step, of `SUMS` and `SCORES`; and the bytes needed.

    What one step needs does not overlap, except for an output that overwrites an input. Blocks are placed one after
    the other, each at the lowest free offset; of several orders the one that needs least memory is taken.
    """
    end = len(network.steps)
    blocks = _map_blocks(network)
    blocks += [[_Part(step, scratch_bytes(step), *[step.output.first] * 2)] for step in convolutions(network)]
    blocks += [[_Part(SUMS, 4 * network.features.channels, end, end)], [_Part(SCORES, 4 * len(network.head), end, end)]]
    needed = max(
        sum(max((part.bytes for part in block if part.first <= step <= part.last), default=0) for block in blocks)
        for step in range(end + 1)
    )
    generator = random.Random(0)
    apart = [[part] for block in blocks for part in block]  # rarely better: one offset need not suit a whole block
    best = min((_place(sorted(order, key=_bytes)) for order in (blocks, apart)), key=lambda result: result[1])
    for _ in range(PLANS):
        if best[1] < needed + ALIGNMENT:  # no plan can be better
            break
        order = generator.sample(blocks, len(blocks))
        best = min(best, _place(order), key=lambda result: result[1])
    return best


def _map_blocks(network: Network) -> list[_Block]:
    """The maps, those that overwrite each other in one block."""
    blocks: list[_Block] = []
    block_of: dict[Map | None, _Block] = {}
    for item, source in zip(maps(network), [None, *map(overwritten, network.steps)], strict=True):
        if source is None:
            blocks.append([])
        block_of[item] = block_of.get(source, blocks[-1])
        block_of[item].append(_Part(item, item.bytes, item.first, item.last))
    return blocks


def _bytes(block: _Block) -> int:
    """A key that puts large blocks first."""
    return -max(part.bytes for part in block)


def _place(blocks: Sequence[_Block]) -> tuple[dict[object, int], int]:
    offsets: dict[object, int] = {}
    placed: list[_Part] = []
    for block in blocks:
        taken = [  # bytes of this block's part, and from where to where another lies that some step needs too
            (part.bytes, offsets[other.key], offsets[other.key] + other.bytes)
            for other in placed
            for part in block
            if part.meets(other)
        ]
        candidates = [0, *(-(-stop // ALIGNMENT) * ALIGNMENT for _, _, stop in taken)]
        offset = min(
            candidate
            for candidate in candidates
            if all(candidate + size <= start or stop <= candidate for size, start, stop in taken)
        )
        offsets |= {part.key: offset for part in block}
        placed += block
    return offsets, max(offsets[part.key] + part.bytes for part in placed)


def memory_bytes(network: Network) -> int:
    """Bytes of working memory at any address."""
    return plan(network)[1] + ALIGNMENT - 1 + (OVERREAD if has_depthwise(network) else 0)
