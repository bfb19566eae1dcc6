"""`python -m tinycifar` is the command `tinycifar`."""

import os

# How long GNU OpenMP's threads spin while they wait for each other, read once, when torch is loaded. Its default costs
# nothing on an idle machine, but beside one other busy process it makes a training step five times slower; at this
# value both cases are fast (docs/LOG.md, 2026-11-23).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from tinycifar.cli import main

if __name__ == "__main__":
    main()
