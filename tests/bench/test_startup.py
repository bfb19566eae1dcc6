"""Start-up: what is loaded, and the benchmark that times it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from PIL import Image

from tinycifar.bench import startup
from tinycifar.cli import COMMANDS, cli

PROGRAM = """
import contextlib, json, sys
from tinycifar.cli import main
for words in json.loads(sys.argv[1]):
    with contextlib.suppress(SystemExit):
        main(words)
    heavy = {"torch", "matplotlib", "scipy", "onnx", "optuna", *sys.argv[2:]} & set(sys.modules)
    assert not heavy, (words, heavy)
"""


def printed_without_pytorch(commands: list[list[str]], *others: str) -> str:
    """What commands print, in turn in one process, none of which loads PyTorch, other large packages, or `others`."""
    words = [sys.executable, "-c", PROGRAM, json.dumps(commands), *others]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("--version", "tinycifar, version"),
        ("--help", "Usage: tinycifar"),
        ("recipes", "minute"),
        ("recipes --json", '"minute"'),
        ("recipes show minute", 'model = "minutenet"'),
        ("models", "minutenet"),
        ("predict a.png", "a.png"),
    ],
)
def test_commands_that_need_no_pytorch_do_not_load_it(command, printed):
    Image.new("RGB", (40, 30), "red").save("a.png")
    assert printed in printed_without_pytorch([command.split()], "rich")


def test_no_help_loads_pytorch():
    groups = {name: command for name in COMMANDS if isinstance(command := cli.get_command(None, name), click.Group)}
    words = [[name] for name in COMMANDS]
    words += [[name, inner] for name, group in groups.items() for inner in group.commands]
    assert {"bench", "data", "recipes"} <= groups.keys()
    assert printed_without_pytorch([[*line, "--help"] for line in words]).count("Usage: tinycifar") == len(words)


def test_importing_the_package_loads_neither_pytorch_nor_matplotlib_nor_numpy():
    program = "import sys, tinycifar as t; print({'torch', 'matplotlib', 'numpy'} & set(sys.modules), t.list_models())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set() ['accurate', 'nano', 'micro', 'minute']\n"


def test_every_command_exists_and_its_line_in_the_help_fits():
    for name, (_, _, line) in COMMANDS.items():
        command = cli.get_command(None, name)
        assert command.name == name
        assert command.help
        assert line.endswith(".")
        assert len(line) < 65


@pytest.mark.slow
def test_the_benchmark_times_commands_beside_python_and_another_installation(tinycifar, tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(Path(startup.__file__).parents[1], checkout / "src" / "tinycifar")
    content = tinycifar("bench", "startup", "--rounds", "1", "--against", checkout, "--json").json
    rows = {row["command"]: row for row in content["rows"]}
    assert list(rows)[2:] == [f"tinycifar {name}" for name in ("--version", "--help", "recipes", "models", "predict")]
    python, version = rows[startup.PYTHON], rows["tinycifar --version"]
    assert (python["to_python"], rows[startup.TORCH]["to_torch"], python["to_other"]) == (1, 1, None)
    assert version["to_python"] == pytest.approx(version["seconds"] / python["seconds"])
    assert version["to_other"] == pytest.approx(version["seconds"] / version["other_seconds"])
