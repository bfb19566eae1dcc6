"""The plan of the working memory of exported C: where feature maps and scratch lie."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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


@dataclass(frozen=True)
class Group:
    """One step, or those of a separable block, which run together row by row.

    A block has a depthwise convolution that keeps the size, 2x2 max-pooling if there is any, a 1x1 convolution, and the
    addition of the block's input if there is one. Of the maps within it only a few rows are in memory. `overwrites` is
    the input that the output may overwrite, or None. A row of a block's output is put in its place once `delay` more
    are computed, as until then the place may hold input that is still needed.
    """

    steps: tuple[Step, ...]
    overwrites: Map | None = None
    delay: int = 0

    @property
    def is_separable(self) -> bool:
        """Whether it is a separable block."""
        return len(self.steps) > 1

    @property
    def mixing(self) -> Step:
        """A block's 1x1 convolution."""
        return next(step for step in self.steps if _is_1x1(step))


@functools.lru_cache(maxsize=8)
def groups(network: Network) -> list[Group]:
    """The steps in their order, those of each separable block together."""
    result, start = [], 0
    while start < len(network.steps):
        steps = _separable(network.steps[start : start + 4]) or (network.steps[start],)
        result.append(_with_overwritten(steps))
        start += len(steps)
    return result


def _is_1x1(step: Step) -> bool:
    return step.kind == "conv" and (step.kernel, step.stride, step.padding, step.groups) == (1, 1, 0, 1)


def _separable(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The separable block that these steps begin with; none if it is incomplete."""
    first = steps[0]
    if not first.depthwise or (first.stride, first.dilation, 2 * first.padding) != (1, 1, first.kernel - 1):
        return ()
    block, kinds = [first], ["depthwise"]
    for before, step in pairwise(steps):
        kind = "1x1" if _is_1x1(step) else step.kind
        follows = {"pool": ["depthwise"], "1x1": ["depthwise", "pool"], "add": ["1x1"]}.get(kind, [])
        only_reader = before.output in step.inputs and before.output.last == step.output.first
        residual = kind != "add" or ("pool" not in kinds and first.inputs[0] in step.inputs)
        if not (kinds[-1] in follows and only_reader and residual):
            break
        block.append(step)
        kinds.append(kind)
    return tuple(block) if "1x1" in kinds else ()


def _with_overwritten(steps: tuple[Step, ...]) -> Group:
    """A group of these steps, with what its output may overwrite."""
    first, output = steps[0], steps[-1].output
    if len(steps) == 1:
        for item in first.inputs if _is_1x1(first) or first.kind in ("add", "pool") else []:
            if item.last == output.first and output.channels <= item.channels:  # read before its place is written to
                return Group(steps, item)
        return Group(steps)
    (source,) = first.inputs
    row, new_row = source.size * source.channels, output.size * output.channels
    pooled = source.size // output.size
    for delay in range(first.kernel + 1 if first.output.first <= source.last <= output.first else 0):
        # When row r is computed, rows up to r - delay are in place, and input from row (r + 1) * pooled - padding on is
        # needed for the next.
        if all(
            (computed - delay + 1) * new_row <= ((computed + 1) * pooled - first.padding) * row
            for computed in range(delay, output.size - 1)
        ):
            return Group(steps, source, delay)
    return Group(steps)


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


def _scratch(group: Group) -> dict[object, int]:
    """By what it is for, the bytes of each part of a group's scratch, which lie one after the other.

    Those of convolutions, and in a block rows of the depthwise convolution's output, under that map, and of the block's
    output, under the group.
    """
    parts: dict[object, int] = {step: scratch_bytes(step) for step in group.steps if step.kind == "conv"}
    if group.is_separable:
        between, output = group.steps[0].output, group.steps[-1].output
        parts[between] = between.size // output.size * between.size * between.channels
        parts[group] = (group.delay + 1) * output.size * output.channels
    return {key: -(-count // ALIGNMENT) * ALIGNMENT for key, count in parts.items()}


@functools.lru_cache(maxsize=8)
def plan(network: Network) -> tuple[dict[object, int], int]:
    """Offsets of maps, of the parts of scratch, by their keys, of `SUMS` and `SCORES`; and the bytes needed.

    What one group of steps needs does not overlap, except for an output that overwrites an input. Blocks are placed one
    after the other, each at the lowest free offset; of several orders the one that needs least memory is taken.
    """
    blocks, end = _map_blocks(network), len(groups(network))
    for number, group in enumerate(groups(network)):
        blocks += [[_Part(group, sum(_scratch(group).values()), number, number)]] if _scratch(group) else []
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
    offsets, bytes_needed = best
    for group in groups(network):
        offset = offsets.pop(group, 0)
        for key, count in _scratch(group).items():
            offsets[key] = offset
            offset += count
        if group.is_separable:
            offsets[group.mixing.inputs[0]] = offsets[group.steps[0].output]
            offsets.setdefault(group.mixing.output, offsets[group])
    return offsets, bytes_needed


def _map_blocks(network: Network) -> list[_Block]:
    """The maps that lie in memory as a whole, those that overwrite each other in one block."""
    blocks: list[_Block] = []
    block_of: dict[Map | None, _Block] = {}
    times = [number for number, group in enumerate(groups(network)) for _ in group.steps] + [len(groups(network))]
    outputs = [(group.steps[-1].output, group.overwrites) for group in groups(network)]
    for item, source in [(network.pixels, None), *outputs]:
        if source is None:
            blocks.append([])
        block_of[item] = block_of.get(source, blocks[-1])
        block_of[item].append(_Part(item, item.bytes, times[item.first], times[item.last]))
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
