"""The machine that something runs on: its device, the precision that suits it, versions and revision."""

from __future__ import annotations

import datetime
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def select_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA or MPS if there, else the CPU.

    Raises ValueError for a name torch does not know and for a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
            raise RuntimeError("torch knows more devices, but they cannot train")
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"no device {name!r} here; allowed are auto, cpu, cuda and mps, where present") from None
    return device


def device_name(device: torch.device) -> str:
    """What the device calls itself: the GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU (MPS)"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_revision() -> str | None:
    """The commit of the checkout this package runs from, `-dirty` behind it if source differs; None outside one."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not git("ls-files", "--", Path(__file__).name):
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def select_precision(name: str, device: torch.device) -> str:
    """The precision that `name` means on `device`: "auto" is bfloat16 where the machine multiplies it natively.

    That is a GPU that says so, or an x86 CPU with AMX or AVX512-BF16; others would only imitate it, more slowly than
    they compute in float32. Older versions of torch cannot tell, and then it is float32.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        native = device.type == "cpu" and any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))
    return "bfloat16" if native else "float32"


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure depends on besides the recipe: device, thread count, versions, revision, date (UTC)."""
    return {
        "device": f"{device.type}: {device_name(device)}",
        "threads": torch.get_num_threads(),
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
        "platform": platform.platform(),
        "git_revision": git_revision(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
