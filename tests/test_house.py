"""The order of the package's stages: imports point one way (docs/CONTRIBUTING.md)."""

import ast
import graphlib
from pathlib import Path

import tinycifar

FOLDER = Path(tinycifar.__file__).parent
# From the lowest stage to the highest. A module may import those of lower stages and of its own.
STAGES = [
    {"__init__"},  # the version; the rest of it loads on first use
    {"atomic", "catalog", "environment", "machine", "memory", "signals", "typed", "words"},
    {"data", "dataset", "pictures"},  # the last two are former names of modules in `data`
    {"scale"},
    # the core of the pipeline
    {
        "augment",
        "checkpoint",
        "distill",
        "epochs",
        "evaluation",
        "heatmaps",
        "inference",
        "job",
        "labels",
        "layers",
        "metrics",
        "models",
    }
    | {
        "numpy_model",
        "optim",
        "predictions",
        "recipe",
        "recipes",
        "recording",
        "resume",
        "run",
        "scores",
        "setup",
        "speed",
        "summary",
        "trained",
        "training",
    },
    {"formats", "report"},
    {"bench", "serve", "sweep"},
    {"seeds"},
    {"library"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
# Packages that know nothing of each other although they are of one stage.
APART = {"bench", "formats", "report", "serve", "sweep"}
RANK = {name: rank for rank, names in enumerate(STAGES) for name in names}


def topic(module: str) -> str:
    """The package or module below `tinycifar` that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports() -> dict[str, set[str]]:
    """By module the modules of ours that it imports, anywhere in it but for type checkers only."""
    modules = {
        ".".join(["tinycifar", *path.relative_to(FOLDER).with_suffix("").parts]).removesuffix(".__init__"): path
        for path in FOLDER.rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        ignored = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for inner in ast.walk(node)
        }
        names = set()
        for node in ast.walk(tree):
            if id(node) in ignored:
                continue
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        found[module] = {name for name in names if name in modules and name != module}
    return found


def test_every_module_has_a_stage():
    assert {topic(module) for module in imports()} == RANK.keys()


def test_no_module_imports_one_of_a_higher_stage():
    wrong = [
        f"{module} imports {name}"
        for module, names in imports().items()
        for name in names
        if topic(module) != "__init__" and RANK[topic(name)] > RANK[topic(module)]
    ]
    assert wrong == []


def test_packages_of_one_stage_do_not_import_each_other():
    wrong = [
        f"{module} imports {name}"
        for module, names in imports().items()
        for name in names
        if {topic(module), topic(name)} <= APART
        and topic(module) != topic(name)
        and RANK[topic(module)] == RANK[topic(name)]
    ]
    assert wrong == []


def test_imports_have_no_circle():
    # A package's __init__ imports its own modules, which do not need it loaded whole.
    packages = {name for name in imports() if (FOLDER / Path(*name.split(".")[1:]) / "__init__.py").exists()}
    graph = {module: names - packages for module, names in imports().items() if module not in packages}
    graphlib.TopologicalSorter(graph).prepare()
