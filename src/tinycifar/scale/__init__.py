"""Several processes: torchrun, child processes, live event files."""
