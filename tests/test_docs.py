"""Every command and every piece of code in the README, docs/ and examples/README.md: run, or listed here with a reason.

What they find is shortened as a reader in a hurry would: the sample instead of CIFAR-10, few images, one epoch. What
takes more than a few seconds even so is marked `end_to_end`.
"""

import contextlib
import functools
import http.client
import inspect
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import click
import pytest
from torch.distributed.run import get_args_parser

from conftest import write_pictures
from tinycifar import data, models, recipes, trained, training
from tinycifar.cli import cli
from tinycifar.data import pictures
from tinycifar.formats import tflite
from tinycifar.recipes import tomllib
from tinycifar.report import run_page

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"]
TINYCIFAR = [sys.executable, "-m", "tinycifar"]

# --- the tables: what is done with which command ------------------------------------------------------------------

# Not run, by how the command begins or by an option. What it names is looked up all the same: targets, files, options.
NOT_RUN = {
    "make": "targets of the Makefile; .ci/run makes test, check and faults",
    "bash .ci/run": "it runs these tests",
    "for seed in": "ten trainings in full, with records, which take whole recipes and committed source",
    "--record": "records take whole recipes and committed source, and hours; tests of the command cover it",
    "apt install": "a test installs nothing; .ci/run installs it",
    "cc": "tests/formats/test_c_source.py compiles and runs this file",
    "cd examples/embedded": "tests/boards/test_emulate.py runs it",
    "python -m http.server": "Python's own; tests/formats/test_web.py opens the page in a browser",
}
# Replaced in a command: a part of it, and by what.
REPLACED = {
    "validation_images=5000": "validation_images=40",  # the sample has 400 training images
    "--seeds 5": "--seeds 2",
    "--seeds 20 --jobs 2": "--seeds 2 --jobs 2 --threads 2",
    "train study/best.toml": "train my.toml",
    "compare runs/minute runs/best": "compare RUN OTHER",
    "--data FOLDER": "--data photos",
}
# Added to commands that begin so; `--data sample` unless they name data themselves.
ADDED = {
    "train": "--data sample --limit 64 --epochs 1",
    "train teacher": "--set validation_images=40",
    "train nano --teacher": "--set teacher_views=1",
    "train micro --teacher": "--set teacher_views=1",
    "train micro --set teacher=large-teacher": "--set teacher_views=1",
    "evaluate RUN --robustness": "--images 20",
    "bench infer": "minute --rounds 1",
    "scripts/own_images.py": "--quick",
    "serve": "--port 0 --workers 1",
    "scripts/measure_others.py": "--quick",
    "scripts/measure_scale.py": "--quick",
    "sweep": "--data sample --epochs 1 --trials 2 --validation-images 40",
}
# Marked `end_to_end`: what begins so.
SLOW = (
    "bench",
    "evaluate RUN --robustness",
    "export",
    "scripts/own_images.py",
    "scripts/measure_others.py",
    "scripts/measure_scale.py",
    "sweep",
    "serve",
    "train --data",
    "train --seeds",
    "train --epochs",
    "train micro",
    "train minute",
    "train nano",
    "train teacher",
)

# --- what documents contain ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Lines of a document that are no prose; `language` is "" where they are indented, else that of the fence."""

    document: str
    language: str
    lines: tuple[str, ...]


@functools.cache
def blocks(path: Path) -> tuple[Block, ...]:
    """What is indented or fenced in a document."""
    found, lines, fence, language = [], [], "", ""
    before = ""
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        opened = re.match(r" *(```+)(\w*)", line)
        if fence and opened and opened[1] == fence:
            found.append(Block(path.name, language, tuple(lines)))
            lines, fence = [], ""
        elif fence:
            lines.append(line)
        elif opened:
            found += [Block(path.name, "", tuple(lines))] if lines else []
            lines = []
            fence, language = opened[1], opened[2] or "none"
        elif line.startswith("    ") and (lines or not before):
            lines.append(line[4:])
        elif lines and not line:
            lines.append(line)
        elif lines:
            found.append(Block(path.name, "", tuple(lines)))
            lines = []
        before = line
    assert not fence, f"{path.name}: a fence is not closed"
    found += [Block(path.name, "", tuple(lines))] if lines else []
    return tuple(replace(of, language="python") if is_python(of) else of for of in found)


def is_python(block: Block) -> bool:
    """Whether an indented block is Python."""
    return not block.language and block.lines[0].startswith(("import ", "from "))


def all_blocks(*languages: str) -> list[Block]:
    return [block for path in DOCUMENTS for block in blocks(path) if block.language in languages]


def commands() -> list[str]:
    """The commands of all documents, each once, without comments and variables in front."""
    found: dict[str, None] = {}
    for block in all_blocks("", "bash"):
        for part in "\n".join(block.lines).replace("\\\n", " ").split("\n\n"):
            if re.match(r"[\w-]+/", part.lstrip("\n")):
                continue  # it shows what lies in a folder, with whose name it begins
            for line in part.splitlines():
                if command := " ".join(re.sub(r"(^|\s)#.*", "", line).split()):
                    found[re.sub(r"^([A-Z_]+=\S+ )+", "", command)] = None
    return list(found)


def spans() -> list[str]:
    """What stands in backticks in the prose and the tables, each once; not in the log, which tells what was."""
    found: dict[str, None] = {}
    for path in DOCUMENTS:
        if path.name == "LOG.md":
            continue
        prose = re.sub(r"(?ms)^ *```.*?^ *```", "", path.read_text(encoding="utf-8"))
        prose = "\n".join("" if line.startswith("    ") else line for line in prose.splitlines())
        for span in re.findall(r"`([^`]+)`", prose):
            found[" ".join(span.split())] = None
    return list(found)


def begins(command: str, start: str) -> bool:
    return f"{command} ".startswith(f"{start} ")


def is_not_run(command: str) -> bool:
    return any(begins(command, start) or start in command.split() for start in NOT_RUN)


def of_kind(program: str) -> list[Any]:
    """The commands of a program that are run, marked where they take long, without the program's name."""
    found = []
    for command in commands():
        if begins(command, program) and not is_not_run(command):
            rest = command.removeprefix(program).strip()
            for part, instead in REPLACED.items():
                rest = rest.replace(part, instead)
            slow = program == "torchrun" or any(begins(rest, start) for start in SLOW)
            found.append(pytest.param(rest, marks=[pytest.mark.end_to_end] if slow else [], id=rest))
    return found


PROGRAMS = ("tinycifar", "torchrun", "python")


def test_documents_hold_nothing_that_is_neither_run_nor_listed():
    run = [command for command in commands() if any(begins(command, program) for program in PROGRAMS)]
    assert [command for command in commands() if command not in run and not is_not_run(command)] == []
    languages = {block.language for path in DOCUMENTS for block in blocks(path)}
    assert languages <= {"", "bash", "python", "toml", "text", "json"}, "a fence needs one of these languages"
    assert len(commands()) > 40


def test_no_table_here_speaks_of_what_no_document_says_any_more():
    found = commands()
    words = [command.partition(" ")[2] for command in found if not is_not_run(command)]
    unused = [start for start in NOT_RUN if not any(begins(of, start) or start in of.split() for of in found)]
    assert unused == []
    assert [start for start in (*ADDED, *SLOW) if not any(begins(of, start) for of in words)] == []
    assert [part for part in REPLACED if not any(part in command for command in found)] == []
    code = "\n".join(line for block in all_blocks("python") for line in block.lines)
    named = " ".join([*found, *REPLACED.values(), code])
    assert [name for name in THINGS if name not in named] == []


# --- what documents speak of --------------------------------------------------------------------------------------


def picture(place: Path) -> None:
    pictures.to_image(data.sample().test_images[0]).resize((200, 160)).save(place)


def a_run(place: Path, recipe: str = "minute", stop_after_epoch: int | None = None, seed: int = 0) -> None:
    settings = ["epochs=1"] if stop_after_epoch is None else ["epochs=2"]
    if recipe.endswith("teacher"):
        settings.append("validation_images=40")
    changed = recipes.with_settings(recipes.get(recipe), settings)
    training.train(changed, "sample", out=place, limit=64, stop_after_epoch=stop_after_epoch, seed=seed)
    run_page.write(place)


def exported(place: Path, exports: Path) -> None:
    """The exported `minute` stands for all that documents export, which takes long."""
    place.parent.mkdir(exist_ok=True)
    if place.suffix == ".tflite":
        pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
        tflite.to_tflite(trained.load("minute", "cpu"), place, int8="int8" in place.name)
        return
    shutil.copy(exports / ("minute-int8.onnx" if "int8" in place.name else "minute.onnx"), place)


THINGS: dict[str, Callable[[Path], None]] = {
    "RUN": a_run,
    "OTHER": lambda place: a_run(place, seed=1),
    "--resume RUN": lambda place: a_run(place, stop_after_epoch=1),
    "cat.png": picture,
    "photos": lambda place: write_pictures(place, train=24),
    "my.toml": lambda place: place.write_text(recipes.to_toml(recipes.get("minute"))) and None,
    "--teacher teacher": lambda place: a_run(place / "seed-0", "teacher"),
    "--teacher results/teacher": lambda place: a_run(place / "seed-2", "teacher"),
    "--teacher results/large-teacher": lambda place: a_run(place / "seed-0", "large-teacher"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make a thing of that name, once."""
    folder = tmp_path_factory.mktemp("things")

    @functools.cache
    def make(name: str) -> Path:
        place = folder / name.replace(" ", "-")
        THINGS[name](place)
        return place

    return make


@pytest.fixture
def bring(made: Callable[[str], Path], request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Copy into this folder what a command or code speaks of, but not what it is about to write."""

    def copy(text: str) -> None:
        read = re.sub(r"(--out|>) \S+", "", text)
        for name in sorted(THINGS, key=len, reverse=True):
            here = Path(name.split()[-1])
            if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", read) and not here.exists():
                thing = made(name)
                (shutil.copytree if thing.is_dir() else shutil.copy)(thing, here)
        for name in re.findall(r"exports/[\w-]+\.(?:onnx|tflite)", read):
            exported(Path(name), request.getfixturevalue("exports"))

    return copy


def shortened(command: str) -> list[str]:
    """The words of a `tinycifar` command as they are run here."""
    added = [extra for start, extra in ADDED.items() if begins(command, start)]
    if "--resume" in command:
        added = []  # it goes on as it was begun
    words = shlex.split(command)
    for extra in added:
        words += shlex.split(extra.replace("--data sample", "") if "--data" in words else extra)
    return words  # of an option that is now there twice, the second holds


# --- commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [of for of in of_kind("tinycifar") if not begins(of.values[0], "serve")])
def test_a_command_of_the_documents_does_what_it_says(command, bring, tinycifar):
    bring(command)
    command, _, file = command.partition(" > ")
    done = tinycifar(*shortened(command))
    assert (done.code, [line for line in done.err.splitlines() if line.startswith("tinycifar:")]) == (0, [])
    if file:
        Path(file).write_text(done.out)
        assert recipes.read(Path(file)) == recipes.get("minute")
    if begins(command, "train"):
        assert list(Path().glob("**/report.html"))


@contextlib.contextmanager
def served(words: list[str], host: str = "127.0.0.1") -> Iterator[int]:
    """A service that answers /health, on the port that it gives."""
    with Path("served.log").open("w") as log:
        process = subprocess.Popen(
            [*TINYCIFAR, *words], stdout=log, stderr=subprocess.PIPE, text=True, env={**os.environ, "BROWSER": "true"}
        )
    try:
        line = process.stderr.readline()
        found = re.search(r":(\d+)/ \(Ctrl-C ends it\)$", line)
        assert found is not None, line
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)
        connection.request("GET", "/health", headers={"Host": f"{host}:{found[1]}"})
        assert connection.getresponse().status == 200
        connection.close()
        yield int(found[1])
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
        process.stderr.close()
    assert code == 0


@pytest.mark.parametrize("command", [of for of in of_kind("tinycifar") if begins(of.values[0], "serve")])
def test_a_service_of_the_documents_answers(command, bring):
    bring(command)
    named = re.search(r"--allow-host (\S+)", command)
    with served(shortened(command), host=named[1] if named else "127.0.0.1"):
        pass


@pytest.mark.parametrize("command", of_kind("torchrun"))
def test_a_command_for_several_processes_trains_with_two(command, bring, tmp_path):
    launcher, _, rest = command.partition("-m tinycifar ")
    get_args_parser().parse_args([*shlex.split(launcher), "-m", "tinycifar"])  # SystemExit for an unknown option
    bring(rest)
    words = ["--standalone", "--nproc-per-node", "2", "-m", "tinycifar", *shortened(rest)]
    subprocess.run([sys.executable, "-m", "torch.distributed.run", *words], check=True)
    assert list(tmp_path.glob("**/report.html"))


@pytest.mark.parametrize("command", of_kind("python"))
def test_a_script_of_the_documents_runs(command, bring):
    bring(command)
    words = [str(ROOT / word) if word.startswith(("examples/", "scripts/")) else word for word in shortened(command)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- what is not run exists ---------------------------------------------------------------------------------------


def lines_and_spans(program: str) -> list[str]:
    """What follows a program's name, in commands and in backticks."""
    texts = [re.sub(r"^([A-Z_]+=\S+ )+", "", text) for text in [*commands(), *spans()]]
    return [text.removeprefix(program).strip() for text in texts if begins(text, program)]


def test_make_has_every_target_that_documents_name():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        word
        for text in lines_and_spans("make")
        for word in shlex.split(text)
        if "=" not in word and word not in ("|", "...", "…")
    }
    assert named - targets == set()
    assert {"train", "test", "check", "faults", "load", "results"} <= named


def test_the_files_that_commands_name_exist():
    named = {
        word
        for program in ("pytest", "bash", "cc", "python", "python -m pytest")
        for text in lines_and_spans(program)
        for word in text.split()
        if word.startswith((".ci/", "tests/", "scripts/", "examples/"))
    }
    assert {name for name in named if not (ROOT / name).exists()} == set()
    assert "tests/serve/test_app.py" in named


def test_what_is_installed_can_be_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in lines_and_spans("pip install"):
        for extras in re.findall(r"(?:\.|tinycifar)\[([\w,]+)\]", text):
            assert set(extras.split(",")) <= set(project["optional-dependencies"]), text
        for requirement in re.findall(r"torch[<>=][<>=,.\d]+", text):
            assert requirement in project["dependencies"], text


def test_commands_in_prose_and_tables_exist_with_their_options():
    texts = lines_and_spans("tinycifar")
    for text in texts:
        command: click.Command = cli
        for word in text.split():
            inner = command.get_command(click.Context(command), word) if isinstance(command, click.Group) else None
            if inner is not None:
                command = inner
            elif word.startswith("--") and word != "--help":
                options = {name for parameter in command.params for name in parameter.opts}
                assert word.partition("=")[0].rstrip("`.,") in options, f"tinycifar {text}: no {word}"
            elif command is cli:
                assert word in ("|", "...", "…"), f"tinycifar {text}: no command {word}"
    assert len(texts) > 40


def test_every_file_that_a_document_links_to_exists():
    for path in DOCUMENTS:
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            place = link.partition("#")[0]
            assert "://" in link or not place or (path.parent / place).exists(), f"{path.name} links to {link}"


# --- code ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", sorted({block.document for block in all_blocks("python")}))
@pytest.mark.slow
def test_the_code_of_a_document_runs_from_top_to_bottom(document, bring, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program.py", "cat.png"])
    namespace: dict[str, Any] = {"__name__": "__main__"}
    of_document = [block for block in all_blocks("python") if block.document == document]
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        stack.enter_context(mock.patch.dict(models.MODELS))  # what the code adds is gone afterwards
        warnings.simplefilter("ignore", ResourceWarning)  # as in a process of its own
        for block in of_document:
            code = "\n".join(block.lines)
            if "127.0.0.1:8000" in code:  # a service that is started for it
                bring("cat.png exports/minute-int8.onnx")
                words = ["serve", "exports/minute-int8.onnx", "--port", "0", "--workers", "1"]
                code = code.replace("127.0.0.1:8000", f"127.0.0.1:{stack.enter_context(served(words))}")
            bring(code)
            exec(compile(code, document, "exec"), namespace)


def test_the_example_of_the_package_is_what_its_functions_take():
    import tinycifar

    functions = [name for name in tinycifar.__all__ if inspect.isfunction(getattr(tinycifar, name))]
    assert len(functions) == len(tinycifar.__all__) - 3
    for name in functions:
        assert f"tinycifar.{name}(" in tinycifar.__doc__


@pytest.mark.parametrize("block", all_blocks("toml"), ids=lambda block: block.document)
def test_a_recipe_in_a_document_can_be_read(block, tmp_path):
    (tmp_path / "my.toml").write_text("\n".join(block.lines))
    assert recipes.read(tmp_path / "my.toml")
