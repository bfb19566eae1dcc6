#!/usr/bin/env bash
# `torch.distributed.destroy_process_group()` does not end the threads of gloo if a DistributedDataParallel was built,
# although nothing of it is left. The first DistributedDataParallel of a process imports `torch._dynamo`, and with it
# `torch.distributed.nn.functional`, whose functions take `group=group.WORLD` as a default. That default is evaluated
# when the module is imported: with a process group it is that group, which lives until the interpreter ends, and its
# threads with it. Such threads can abort a process that has done all its work (exit by signal 6, "terminate called
# without an active exception"), and torchrun then reports a failure. Whoever imports `torch.distributed.nn` before
# `init_process_group` gets None as the default, and the threads end with the group.
#
# Seen with torch 2.13.0, Python 3.11, Linux x86-64; threads of gloo after destroy_process_group():
#   DistributedDataParallel, nothing imported before        3
#   DistributedDataParallel, torch.distributed.nn before    0
#   all_gather without DistributedDataParallel              0
# Exit code 0 while DistributedDataParallel keeps the group, 1 if it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy<3"
cat > "$folder/threads.py" <<'PY'
import gc
import importlib
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

parallel, before = (word == "yes" for word in sys.argv[2:])
if before:
    importlib.import_module("torch.distributed.nn")
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
if parallel:
    model = DistributedDataParallel(torch.nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    del model
else:
    dist.all_gather([torch.empty(2)], torch.ones(2))
gc.collect()
dist.destroy_process_group()
gc.collect()
names = [(thread / "comm").read_text() for thread in Path("/proc/self/task").iterdir()]
print(sum("gloo" in name for name in names))
PY
count() {
    rm -f "$folder/store"
    "$folder/venv/bin/python" "$folder/threads.py" "$folder/store" "$1" "$2"
}
alone=$(count yes no)
imported=$(count yes yes)
gathered=$(count no no)
echo "DistributedDataParallel, nothing imported before        $alone"
echo "DistributedDataParallel, torch.distributed.nn before    $imported"
echo "all_gather without DistributedDataParallel              $gathered"
[ "$alone" -gt 0 ] && [ "$imported" -eq 0 ] && [ "$gathered" -eq 0 ]
