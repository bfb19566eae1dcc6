"""`python -m tinycifar` is the command `tinycifar`."""

from tinycifar.cli import main

if __name__ == "__main__":
    main()
