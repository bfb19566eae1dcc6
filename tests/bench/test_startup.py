"""Start-up: what is loaded, and the benchmark that times it."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image

from tinycifar.bench import startup
from tinycifar.cli import COMMANDS, cli

HEAVY = ("torch", "matplotlib", "scipy", "optuna", "onnx", "rich")
PROGRAM = f"""
import sys
from tinycifar.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code, ended.code
print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    "command",
    [
        "--version",
        "--help",
        "recipes",
        "recipes --json",
        "recipes show minute",
        "models",
        "predict a.png",
    ],
)
def test_commands_that_need_no_pytorch_do_not_load_it(command: str, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    words = [sys.executable, "-c", PROGRAM, *command.split()]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout
    assert done.stderr == "[]\n"


def test_no_help_loads_pytorch() -> None:
    groups = {name: command for name in COMMANDS if isinstance(command := cli.get_command(None, name), click.Group)}  # type: ignore[arg-type]
    words = [[name] for name in COMMANDS]
    words += [[name, inner] for name, group in groups.items() for inner in group.commands]
    assert {"bench", "data", "recipes"} <= groups.keys()
    program = f"""
import contextlib, sys
from tinycifar.cli import main
for words in {words}:
    with contextlib.suppress(SystemExit):
        main([*words, "--help"])
    heavy = {{"torch", "matplotlib", "scipy", "onnx", "optuna"}} & set(sys.modules)
    assert not heavy, (words, heavy)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: tinycifar") == len(words)


def test_importing_the_package_loads_neither_pytorch_nor_matplotlib_nor_numpy() -> None:
    program = "import sys, tinycifar as t; print({'torch', 'matplotlib', 'numpy'} & set(sys.modules), t.list_models())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set() ['accurate', 'nano', 'minute']\n"


def test_every_command_exists_and_its_line_in_the_help_fits() -> None:
    for name, (_, _, line) in COMMANDS.items():
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.name == name
        assert command.help
        assert line.endswith(".")
        assert len(line) < 65


@pytest.mark.slow
def test_the_benchmark_times_commands_beside_python_and_another_installation(tinycifar: Any, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(Path(startup.__file__).parents[1], checkout / "src" / "tinycifar")
    content = tinycifar("bench", "startup", "--rounds", "1", "--against", checkout, "--json").json
    rows = {row["command"]: row for row in content["rows"]}
    assert list(rows)[2:] == [f"tinycifar {name}" for name in ("--version", "--help", "recipes", "models", "predict")]
    python, version = rows[startup.PYTHON], rows["tinycifar --version"]
    assert (python["to_python"], rows[startup.TORCH]["to_torch"], python["to_other"]) == (1, 1, None)
    assert version["to_python"] == pytest.approx(version["seconds"] / python["seconds"])
    assert version["to_other"] == pytest.approx(version["seconds"] / version["other_seconds"])


def test_the_benchmark_runs_another_interpreter_and_refuses_what_is_none(tinycifar: Any, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    for against, message in (
        ("nowhere", "nowhere is neither a Python interpreter nor a checkout"),
        (str(tmp_path), "is neither a Python interpreter nor a checkout"),
        ("text", "text is not a Python interpreter that has tinycifar"),
    ):
        refused = tinycifar("bench", "startup", "--rounds", "1", "--against", against)
        assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
        assert message in refused.err


def test_the_help_of_training_fits_a_screen_and_hides_what_maintainers_use(
    tinycifar: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name in COMMANDS:
        lines = tinycifar(name, "--help").out.splitlines()
        assert len(lines) <= (30 if name == "train" else 32), name
        assert max(map(len, lines)) <= 80, name
    shown = tinycifar("train", "--help").out
    for hidden in ("--record", "--stop-after-epoch", "--checkpoint-seconds"):
        assert hidden not in shown
    train = cli.get_command(None, "train")  # type: ignore[arg-type]
    assert train is not None
    assert {"record", "stop_after_epoch", "checkpoint_seconds"} <= {parameter.name for parameter in train.params}
