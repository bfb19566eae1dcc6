"""The machine that something runs on: device, instruction set, the precision that suits it, versions, revision."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

CPUINFO = Path("/proc/cpuinfo")
AVX512 = ("avx512", "avx512_vnni", "avx512_bf16", "avx512_fp16")
X86 = ("sse41", "avx", "avx2", "avx2_vnni", *AVX512, "amx_bf16", "amx_fp16")
"""Instruction sets of x86 that oneDNN distinguishes, the least capable first."""
FASTER_IN_BFLOAT16 = ("avx512_bf16", "amx_bf16", "amx_fp16")
"""Those that train faster in bfloat16 than in float32.

`avx512_fp16` is missing because bfloat16 took 1.4 times as long there, on Emerald Rapids in a virtual machine that
hides AMX. AMD's Zen 4, which has `avx512_bf16`, gained.
"""
ARM = ("neon", "sve", "sve2", "sve_bf16")
FLAGS = {"sse41": "sse4_1", "avx2_vnni": "avx_vnni", "avx512": "avx512_vl"}
"""What torch calls an instruction set, if not the same as here."""
ONEDNN = {
    "AVX512_CORE": "avx512",
    "AVX2_VNNI_2": "avx2_vnni",
    "AVX512_CORE_VNNI": "avx512_vnni",
    "AVX512_CORE_BF16": "avx512_bf16",
    "AVX512_CORE_FP16": "avx512_fp16",
    "AVX10_1_512": "avx512_fp16",
    "AVX512_CORE_AMX": "amx_bf16",
    "AVX10_1_512_AMX": "amx_bf16",
    "AVX512_CORE_AMX_FP16": "amx_fp16",
    "AVX10_1_512_AMX_FP16": "amx_fp16",
}
"""What oneDNN calls an instruction set in `ONEDNN_MAX_CPU_ISA`, if not the same as here in capitals."""
# From Linux: arch/x86/kernel/cpu/amd.c (ranges of models) and arch/x86/include/asm/intel-family.h (single models).
AMD_CORES: dict[int, dict[str, tuple[int, ...]]] = {
    23: {"Zen 2": (0x30, 0x4F, 0x60, 0x7F, 0x90, 0x91, 0xA0, 0xAF), "Zen": (0x00, 0x2F, 0x50, 0x5F)},
    25: {"Zen 3": (0x00, 0x0F, 0x20, 0x5F), "Zen 4": (0x10, 0x1F, 0x60, 0xAF)},
    26: {"Zen 5": (0x00, 0x2F, 0x40, 0x4F, 0x60, 0x7F)},
}
INTEL_CORES = {
    60: "Haswell", 63: "Haswell", 69: "Haswell", 61: "Broadwell", 79: "Broadwell", 78: "Skylake", 94: "Skylake",
    142: "Kaby Lake", 158: "Kaby Lake", 165: "Comet Lake", 166: "Comet Lake", 106: "Ice Lake", 126: "Ice Lake",
    140: "Tiger Lake", 141: "Tiger Lake", 151: "Alder Lake", 154: "Alder Lake", 183: "Raptor Lake", 186: "Raptor Lake",
    170: "Meteor Lake", 143: "Sapphire Rapids", 207: "Emerald Rapids", 173: "Granite Rapids",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a figure depends on besides the recipe: device, instructions, threads, versions, revision, date (UTC)."""

    device: str
    instruction_set: str | None = None
    threads: int
    torch_version: str = ""
    python_version: str = ""
    platform: str = ""
    git_revision: str | None = None
    date: str = ""
    command: tuple[str, ...] = ()


def select_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA or MPS if there, else the CPU.

    Raises ValueError for a name torch does not know and for a device that is not there.
    """
    name = str(name)  # a torch.device is accepted too
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
    """What the device calls itself: the GPU's name, or the processor's with its family and model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU (MPS)"
    try:
        lines = CPUINFO.read_text().partition("\n\n")[0].splitlines()
        fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    except OSError:
        fields = {}
    if "cpu family" in fields:
        return f"{fields.get('model name', 'x86')} ({_generation(fields)})"
    if "CPU part" in fields:
        return f"ARM implementer {fields.get('CPU implementer')} part {fields['CPU part']}"
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or platform.machine()
    return fields.get("model name") or platform.processor() or platform.machine()


def _generation(fields: dict[str, str]) -> str:
    """The core, if it is a known one, family and model of an x86 processor, from the fields of `/proc/cpuinfo`."""
    family, model = int(fields["cpu family"]), int(fields.get("model", 0))
    core = ""
    if fields.get("vendor_id") == "AuthenticAMD":
        for name, ends in AMD_CORES.get(family, {}).items():
            if any(low <= model <= high for low, high in zip(ends[::2], ends[1::2], strict=True)):
                core = name
    elif fields.get("vendor_id") == "GenuineIntel" and family == 6:
        core = INTEL_CORES.get(model, "")
    return ", ".join(filter(None, [core, f"family {family} model {model}"]))


def _widest(limited: bool) -> str:
    """The most capable instruction set of the processor; if `limited`, that `ONEDNN_MAX_CPU_ISA` leaves of them."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    sets = [name for name in (*X86, *ARM) if capabilities.get(FLAGS.get(name, name))]
    if not sets:  # an older torch, which knows ATen's only
        return torch.backends.cpu.get_cpu_capability().lower()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    limit = ONEDNN.get(limit, limit.lower())
    if limited and limit in X86 and sets[0] in X86:
        sets = [name for name in sets if X86.index(name) <= X86.index(limit)] or sets[:1]
    return sets[-1]


def instruction_set() -> str:
    """The most capable instructions that torch computes with on this processor, such as `avx2` or `amx_bf16`.

    It is oneDNN's, which computes convolutions, within `ONEDNN_MAX_CPU_ISA`. ATen computes the rest; its own is named
    too if `ATEN_CPU_CAPABILITY` makes it another one: `avx512_bf16 (ATen: avx2)`.
    """
    widest = _widest(limited=True)
    aten = torch.backends.cpu.get_cpu_capability().lower().replace("no avx", "default")
    if widest in X86:
        usual = "avx512" if "avx512" in widest or "amx" in widest else "avx2" if "avx2" in widest else "default"
    else:
        usual = aten if not os.environ.get("ATEN_CPU_CAPABILITY") else ""
    return widest if aten == usual else f"{widest} (ATen: {aten})"


def has_vnni() -> bool:
    """Whether an x86 processor sums products of 8-bit integers in 32 bits, not 16; true of other processors.

    `ONEDNN_MAX_CPU_ISA` does not matter: onnxruntime, which this is asked for, does not know it.
    """
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
    return not x86 or bool(capabilities.get("avx512_vnni") or capabilities.get("avx_vnni"))


def processor() -> str:
    """The processor with its instruction set, as a table names it.

    `AMD EPYC (Zen 4, family 25 model 17), avx512_bf16`, for example, or, if environment variables restrict it,
    `AVX2, on AMD EPYC (Zen 4, family 25 model 17)`.
    """
    used, name = instruction_set(), device_name(torch.device("cpu"))
    return f"{name}, {used}" if used == _widest(limited=False) else f"{used.upper().replace('ATEN', 'ATen')}, on {name}"


def processor_slug() -> str:
    """`processor()` in small letters, digits, `-` and `_`: the name of its file among the benchmarks."""
    words = re.sub(r"\((r|tm)\)|\b(processor|cpu)\b|@ *[\d.]+ *ghz", " ", processor().lower())
    return re.sub(r"[^a-z0-9_]+", "-", words).strip("-")


def git_revision() -> str | None:
    """The commit of the checkout this package runs from, `-dirty` behind it if source differs; None outside one."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not git("ls-files", "--", Path(__file__).name):
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def select_precision(name: str, device: torch.device) -> str:
    """The precision that `name` means on `device`: "auto" is bfloat16 where that is faster than float32.

    That is a GPU that says so, or an x86 CPU whose instruction set, within `ONEDNN_MAX_CPU_ISA`, is one of
    `FASTER_IN_BFLOAT16`. Older versions of torch cannot tell, and then it is float32.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and _widest(limited=True) in FASTER_IN_BFLOAT16
    return "bfloat16" if native else "float32"


def current(device: torch.device) -> Machine:
    """Describe this machine as it is now, computing on `device`."""
    return Machine(
        device=f"{device.type}: {device_name(device)}",
        instruction_set=instruction_set() if device.type == "cpu" else None,
        threads=torch.get_num_threads(),
        torch_version=str(torch.__version__),
        python_version=platform.python_version(),
        platform=platform.platform(),
        git_revision=git_revision(),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=(Path(sys.argv[0]).name, *sys.argv[1:]),
    )


def measured_on(device: torch.device) -> dict[str, Any]:
    """What a benchmark on `device` records of this machine, by the names of `Machine`."""
    machine = current(device)
    names = ("device", "instruction_set", "threads", "torch_version", "git_revision", "date")
    return {name: getattr(machine, name) for name in names}
