"""How fast seeds are trained in parallel, compared with one after the other."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from tinycifar import signals
from tinycifar.recipes import Recipe
from tinycifar.resume import Request
from tinycifar.scale import jobs
from tinycifar.words import counted


@dataclass(frozen=True)
class Speed:
    """Images per second of one process with all `threads`, and of all `jobs` together, each with its share."""

    alone: float
    together: float
    jobs: int
    threads: int

    def describe(self) -> str:
        """A line that compares the time in parallel with the time in turn."""
        ratio = self.alone / self.together
        change = f"{abs(1 - ratio):.0%} {'more' if ratio > 1 else 'less'} time"
        advice = ": one after the other is faster" if ratio > 1 else ""
        return (
            f"{self.jobs} in parallel, {counted(self.threads // self.jobs, 'thread')} each, train "
            f"{self.together:,.0f} images/s; one alone with {counted(self.threads, 'thread')} {self.alone:,.0f}. "
            f"In parallel takes {change} than in turn{advice}"
        )


def speed_in_parallel(
    work: str, request: Request, *, images: int, threads: int, parallel: int, stop: signals.StopSignal
) -> Speed | None:
    """Train on a few images alone with all threads, then by several processes with their shares.

    Nothing is evaluated on test images. None after a signal and if a training fails, as one that diverges. Raises
    ValueError, with its message, if one is refused.
    """
    assert isinstance(request.recipe, Recipe)
    recipe = replace(request.recipe, watch_test=False)

    def images_per_second(count: int) -> float | None:
        total = 0.0
        with tempfile.TemporaryDirectory() as folder:
            requests = [
                replace(
                    request,
                    recipe=recipe,
                    out=Path(folder, str(number)),
                    threads=threads // count,
                    limit=images,
                    stop_after_epoch=1,
                    evaluate=False,
                    tensorboard=False,
                    record=False,
                )
                for number in range(count)
            ]
            ended = list(jobs.run_all(work, [{"request": each.to_json()} for each in requests], count, stop))
        for child in ended:
            if child.code == 2:
                raise ValueError(child.problem)
            if stop.received or child.result is None:
                return None
            total += float(child.result["result"]["record"]["images_per_second"])
        return total

    alone = images_per_second(1)
    together = None if alone is None else images_per_second(parallel)
    return None if alone is None or together is None else Speed(alone, together, parallel, threads)
