"""`python -m tinycifar` is the command `tinycifar`."""

import logging
import os
import signal
import sys

from tinycifar import signals


def main() -> None:
    """Run the command line."""
    # How long GNU OpenMP's threads spin while they wait for each other, read once, when torch is loaded. Beside one
    # other busy process a training step takes ten to twenty times as long as alone by default, and two to six times
    # at this value, which costs little or nothing on an idle machine (docs/LOG.md, 2026-11-23).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # without a home it warns that its cache is temporary
    signal.signal(signal.SIGTERM, signals.end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it was started to ignore Ctrl-C
        signal.signal(signal.SIGINT, signals.end)
    try:
        from tinycifar import cli
    except BaseException:
        if signals.ended_by is None:
            raise
        sys.exit(128 + signals.ended_by)
    cli.main()


if __name__ == "__main__":
    main()
