"""The machine as it is named: devices, processors, instruction sets and the precision that follows from them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tinycifar import machine

CPU = torch.device("cpu")
AVX512 = ("sse4_1", "avx", "avx2", "avx512_f", "avx512_vl", "avx512_vnni")
ZEN_4 = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n"


@pytest.fixture
def zen_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Zen 4 server without restrictions, whatever this machine is."""
    (tmp_path / "cpuinfo").write_text(ZEN_4)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)
    set_capabilities(monkeypatch, *AVX512, "avx512_bf16", aten="AVX512")


def set_capabilities(monkeypatch: pytest.MonkeyPatch, *flags: str, aten: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(flags, True), raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: aten)


def test_the_machine_says_what_a_figure_depends_on():
    current = machine.current(CPU)
    assert current.device.startswith("cpu: ")
    assert current.instruction_set == machine.instruction_set()
    assert current.threads == torch.get_num_threads()
    assert current.torch_version == torch.__version__
    assert current.date.endswith("+00:00")


def test_a_device_that_is_not_there_is_refused():
    assert machine.select_device("cpu").type == "cpu"
    for name in ("tpu", "cuda:99", "meta", "hpu", "cpu:3", ""):
        with pytest.raises(ValueError, match="allowed are auto, cpu, cuda and mps"):
            machine.select_device(name)


@pytest.mark.parametrize(
    ("vendor", "family", "model", "name"),
    [
        ("AuthenticAMD", 25, 0x11, "Zen 4, family 25 model 17"),
        ("AuthenticAMD", 25, 0x21, "Zen 3, family 25 model 33"),
        ("AuthenticAMD", 23, 0x71, "Zen 2, family 23 model 113"),
        ("AuthenticAMD", 26, 0x02, "Zen 5, family 26 model 2"),
        ("AuthenticAMD", 99, 1, "family 99 model 1"),
        ("GenuineIntel", 6, 143, "Sapphire Rapids, family 6 model 143"),
        ("GenuineIntel", 6, 999, "family 6 model 999"),
        ("GenuineIntel", 15, 143, "family 15 model 143"),
    ],
)
def test_an_x86_processor_is_named_with_core_family_and_model(vendor, family, model, name, tmp_path, monkeypatch):
    core = f"vendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nmicrocode\t:\nmodel name\t: A: CPU\n"
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{core}\nprocessor\t: 1\n{core}")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert machine.device_name(CPU) == f"A: CPU ({name})"


def test_an_arm_processor_and_one_without_a_description_have_a_name_too(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert machine.device_name(CPU) == "ARM implementer 0x41 part 0xd0c"
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "missing")
    assert machine.device_name(CPU)


@pytest.mark.parametrize(
    ("limit", "aten", "instruction_set", "name", "precision"),
    [
        ("", "AVX512", "avx512_bf16", "{}, avx512_bf16", "bfloat16"),
        ("ALL", "AVX512", "avx512_bf16", "{}, avx512_bf16", "bfloat16"),
        ("AVX512_CORE_AMX", "AVX512", "avx512_bf16", "{}, avx512_bf16", "bfloat16"),
        ("AVX2", "AVX2", "avx2", "AVX2, on {}", "float32"),
        ("avx512_core_vnni", "AVX512", "avx512_vnni", "AVX512_VNNI, on {}", "float32"),
        ("SSE41", "DEFAULT", "sse41", "SSE41, on {}", "float32"),
        ("SSE41", "NO AVX", "sse41", "SSE41, on {}", "float32"),
        ("AVX2", "AVX512", "avx2 (ATen: avx512)", "AVX2 (ATen: AVX512), on {}", "float32"),
        ("", "AVX2", "avx512_bf16 (ATen: avx2)", "AVX512_BF16 (ATen: AVX2), on {}", "bfloat16"),
    ],
)
@pytest.mark.usefixtures("zen_4")
def test_a_restricted_processor_is_named_and_used_as_what_it_computes_with(
    limit, aten, instruction_set, name, precision, monkeypatch
):
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    set_capabilities(monkeypatch, *AVX512, "avx512_bf16", aten=aten)
    assert machine.instruction_set() == instruction_set
    assert machine.processor() == name.format("AMD EPYC (Zen 4, family 25 model 17)")
    assert machine.select_precision("auto", CPU) == precision


@pytest.mark.parametrize(
    ("flags", "aten", "instruction_set", "precision"),
    [
        ((*AVX512, "avx512_bf16", "avx512_fp16", "amx_bf16"), "AVX512", "amx_bf16", "bfloat16"),
        ((*AVX512, "avx512_bf16", "avx512_fp16"), "AVX512", "avx512_fp16", "float32"),  # slower in bfloat16
        (AVX512, "AVX512", "avx512_vnni", "float32"),
        (("sse4_1", "avx", "avx2", "avx_vnni"), "AVX2", "avx2_vnni", "float32"),
        (("neon", "bf16", "sve", "sve_bf16"), "SVE256", "sve_bf16", "float32"),
        (("neon",), "DEFAULT", "neon", "float32"),
        ((), "AVX2", "avx2", "float32"),  # a version of torch that names no capabilities
    ],
)
@pytest.mark.usefixtures("zen_4")
def test_every_kind_of_processor_has_an_instruction_set_and_the_precision_that_suits_it(
    flags, aten, instruction_set, precision, monkeypatch
):
    set_capabilities(monkeypatch, *flags, aten=aten)
    assert machine.instruction_set() == instruction_set
    assert machine.select_precision("auto", CPU) == precision
    assert machine.select_precision("bfloat16", CPU) == "bfloat16"


@pytest.mark.usefixtures("zen_4")
def test_the_name_of_a_processors_file_tells_restricted_ones_apart(monkeypatch):
    assert machine.processor_slug() == "amd-epyc-zen-4-family-25-model-17-avx512_bf16"
    set_capabilities(monkeypatch, *AVX512, "avx512_bf16", aten="AVX2")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert machine.processor_slug() == "avx2-on-amd-epyc-zen-4-family-25-model-17"
    machine.CPUINFO.write_text(ZEN_4.replace("AMD EPYC", "Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz"))
    assert machine.processor_slug() == "avx2-on-intel-core-i7-8650u-zen-4-family-25-model-17"


ONEDNN_SAYS = {
    "sse41": "Intel SSE4.1",
    "avx2": "Intel AVX2",
    "avx512": "Intel AVX-512 with AVX512BW, AVX512VL, and AVX512DQ extensions",
    "avx512_vnni": "Intel AVX-512 with Intel DL Boost",
    "avx512_bf16": "Intel AVX-512 with Intel DL Boost and bfloat16 support",
    "avx512_fp16": "Intel AVX 10.1",  # since the oneDNN of torch 2.13 at the latest
}


@pytest.mark.parametrize("limit", ["AVX2", "DEFAULT"])
def test_onednn_and_aten_report_the_same_instruction_set(limit):
    code = (
        "import torch; from tinycifar import machine; images = torch.rand(8, 16, 32, 32); "
        "torch.nn.functional.conv2d(images.to(memory_format=torch.channels_last), torch.rand(16, 16, 3, 3)); "
        "print('ours:' + machine.instruction_set())"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": limit, "ONEDNN_VERBOSE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    onednn = [line.rpartition("isa:")[2] for line in done.stdout.splitlines() if ",cpu,isa:" in line]
    (ours,) = [line.removeprefix("ours:").split()[0] for line in done.stdout.splitlines() if line.startswith("ours:")]
    if not onednn or ours not in ONEDNN_SAYS:
        pytest.skip(f"oneDNN's words for {ours} are not known here")
    former = {"Intel AVX-512 with float16, Intel DL Boost and bfloat16 support ": "Intel AVX 10.1"}  # of torch 2.7
    assert [former.get(words, words) for words in onednn] == [ONEDNN_SAYS[ours]]


@pytest.mark.parametrize(
    ("architecture", "flags", "vnni"),
    [
        ("x86_64", ("sse4_1", "avx2"), False),
        ("AMD64", ("sse4_1", "avx2", "avx_vnni"), True),
        ("x86_64", AVX512, True),
        ("aarch64", ("neon",), True),
    ],
)
def test_sums_of_bytes_are_exact_with_vnni_and_on_other_architectures(architecture, flags, vnni, monkeypatch):
    monkeypatch.setattr(machine.platform, "machine", lambda: architecture)
    set_capabilities(monkeypatch, *flags, aten="AVX2")
    assert machine.has_vnni() is vnni


def test_reading_the_commit_writes_nothing_into_the_repository(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    source = tmp_path / "machine.py"
    source.write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "a")
    os.utime(source, (0, 0))  # git status would write the new time into its index, under a lock
    index = (tmp_path / ".git/index").read_bytes()
    monkeypatch.setattr(machine, "__file__", str(source))
    revision = machine.git_revision()
    assert re.fullmatch(r"[0-9a-f]{40}", revision)
    assert (tmp_path / ".git/index").read_bytes() == index
    source.write_text("2")
    assert machine.git_revision() == f"{revision}-dirty"
