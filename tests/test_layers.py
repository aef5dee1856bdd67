"""Who may import whom: read from the source, and tried in fresh interpreters."""

import ast
import importlib.util
import pkgutil
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TORCH_FREE = (
    *("tarflow", "tarflow.config", "tarflow.identity", "tarflow.record"),
    *("tarflow.cost", "tarflow.data.images", "tarflow.data.importing"),
    *("tarflow.train.checkpoint", "tarflow.train.trunk", "tarflow.train.schedule"),
)
TARFLOW = (  # its rooms, lowest first: a room imports lower ones, or the files beside it
    ("errors", "human"),
    ("strict_yaml", "storage"),
    ("fields",),
    ("command_line", "config_files", "model_config"),
    ("config",),
    ("cost", "identity", "latent_space", "override", "record"),
    ("forecasts", "mirror", "step_time"),
    ("data",),
    ("model",),
    ("latent",),
    ("affine", "cuda_graph", "device"),
    ("distributed",),
    ("cpu", "cuda"),
    ("execution",),
    ("sample",),
    ("evaluate",),
    ("train",),
    ("previews",),
    ("run",),
    ("loaded",),
    ("publish",),
    ("commands",),
    ("__main__",),
)
ANALYSIS = (
    ("laws",),
    ("study",),
    ("comparing", "table"),
    ("report",),
    ("notebook",),
    ("__main__",),
)
SWEEPS = (
    ("failures", "hardware", "lease"),
    ("design",),
    ("watching",),
    ("pricing",),
    ("running",),
    ("searching",),
    ("driver",),
    ("final",),
    ("scaling", "search"),
)
APART = {  # rooms of tarflow that do not know of others below them
    "model": {"data", "cpu", "sample", "train", "distributed", "device"},
    "sample": {"cpu", "execution", "distributed"},
    "evaluate": {"cpu", "execution"},
    "train": {"sample", "evaluate"},
}


LATE = {  # imports at a call, so that what wraps a flow is also its method
    "tarflow.model.flow": {
        "tarflow.sample",
        "tarflow.sample.differentiable",
        "tarflow.sample.inverse",
    },
}


@cache
def imports(package):
    """Return by module what it imports of this project when it is loaded, and what ever."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        tree = ast.parse(path.read_text())
        inner = {node for function in functions(tree) for node in ast.walk(function)}
        ever = {node: targets(node) for node in ast.walk(tree)}
        early = set().union(*(names for node, names in ever.items() if node not in inner))
        found[name] = early - {name}, set().union(*ever.values()) - {name}
    return found


def functions(tree):
    """Yield what does not run, or not for its imports, when a module is loaded."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        ):
            yield node


def targets(node):
    """Return the modules of this project that an import statement names."""
    if isinstance(node, ast.ImportFrom) and node.module:
        inside = [f"{node.module}.{name.name}" for name in node.names]
        names = [name if is_module(name) else node.module for name in inside]
    elif isinstance(node, ast.Import):
        names = [name.name for name in node.names]
    else:
        names = []
    return {name for name in names if name.partition(".")[0] in ("tarflow", "analysis", "sweeps")}


@cache
def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def room(module):
    """Return the folder, or the file on top, that a module of a package belongs to."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize(
    ("package", "floors"), [("tarflow", TARFLOW), ("analysis", ANALYSIS), ("sweeps", SWEEPS)]
)
def test_no_module_imports_one_above_it(package, floors):
    height = {room: floor for floor, rooms in enumerate(floors) for room in rooms}
    wrong = [
        f"{module} imports {name}"
        for module, (_, ever) in imports(package).items()
        for name in ever - LATE.get(module, set())
        if name.startswith(f"{package}.") and room(module) and room(module) != room(name)
        if height[room(name)] >= height[room(module)] or room(name) in APART.get(room(module), ())
    ]
    assert not wrong
    assert {room(module) for module in imports(package)} - {""} == height.keys()


def test_the_model_is_pure():
    """It knows nothing of kernels, processes or tables; only `weights` touches files."""
    for path in (ROOT / "tarflow" / "model").glob("*.py"):
        tree = ast.parse(path.read_text())
        plain = {
            n.name for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names
        }
        named = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        tops = {name.partition(".")[0] for name in plain | named}
        assert not tops & {"ctypes", "multiprocessing", "pyarrow", "subprocess", "threading"}, path
        if path.name not in ("weights.py", "official.py"):
            assert not (plain | named) & {"pathlib", "tarflow.record", "tarflow.storage"}, path


@pytest.mark.parametrize("package", ["tarflow", "analysis", "sweeps"])
def test_no_modules_import_each_other(package):
    """In one package, as they are loaded; a cycle would be named in the error."""
    graph = {
        module: {name for name in early if not module.startswith(f"{name}.")}
        for module, (early, _) in imports(package).items()
    }
    TopologicalSorter(graph).prepare()


def test_packages_import_in_one_direction():
    for package, below in (("tarflow", ()), ("analysis", ("tarflow",))):
        for module, (_, ever) in imports(package).items():
            tops = {name.partition(".")[0] for name in ever}
            assert tops <= {package, *below}, f"{module} imports {tops}"


def test_analysis_itself_knows_nothing_of_pages():
    _, ever = imports("analysis")["analysis"]
    assert not any(name.startswith("analysis.report") for name in ever)


def modules(package):
    """Names of a package and of everything below it, found without importing any of it."""
    names = [package]
    for folder in importlib.util.find_spec(package).submodule_search_locations:
        for found in pkgutil.iter_modules([folder], prefix=f"{package}."):
            names += modules(found.name) if found.ispkg else [found.name]
    return names


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )


def offenders(names, absent):
    """Import `names` one by one in one interpreter; return which brought in what is `absent`."""
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    found = {{m.partition('.')[0] for m in sys.modules}} & {set(absent)!r}\n"
        "    if found: print(name, 'imports', *sorted(found)); break\n"
    )
    ended = python(code)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_the_check_itself_sees_an_import():
    names = ["json", "tarflow.model.flow"]
    assert offenders(names, ["torch"]) == "tarflow.model.flow imports torch"


def test_tarflow_never_imports_ray():
    optional = {"tensorboard": "tensorboardX"} | {
        name: name for name in ("wandb", "mlflow", "trackio")
    }
    lacking = {
        f"tarflow.mirror.{name}"
        for name, package in optional.items()
        if not importlib.util.find_spec(package)
    }
    names = [name for name in modules("tarflow") if name not in lacking]
    assert offenders(names, ["ray"]) == ""


def test_help_plans_and_tables_never_import_torch():
    assert offenders(TORCH_FREE, ["torch", "ray"]) == ""


def test_of_sweeps_only_running_and_searching_import_ray():
    names = [
        name
        for folder in ("design", "watching", "pricing")
        for name in modules(f"sweeps.{folder}")
    ]
    assert offenders(names, ["torch", "ray"]) == ""


def test_analysis_imports_neither_torch_nor_ray():
    assert offenders(modules("analysis"), ["torch", "ray"]) == ""


def test_of_this_project_analysis_imports_what_describes_runs_only():
    allowed = {
        "command_line",
        "config",
        "config_files",
        "cost",
        "errors",
        "forecasts",
        "human",
        "identity",
        "model_config",
        "record",
        "step_time",
        "storage",
    }
    for module, (_, ever) in imports("analysis").items():
        rooms = {room(name) for name in ever if name.startswith("tarflow.")}
        assert rooms <= allowed, module


def test_public_names_are_loaded_when_they_are_used():
    code = (
        "import sys, tarflow\n"
        "assert 'torch' not in sys.modules\n"
        "for name in tarflow.__all__: getattr(tarflow, name)\n"
        "assert 'torch' in sys.modules and tarflow.TarFlow.__module__ == 'tarflow.model.flow'\n"
        "try: tarflow.nothing\n"
        "except AttributeError as error: print(error)\n"
    )
    ended = python(code)
    assert ended.stdout.strip() == "module 'tarflow' has no attribute 'nothing'", ended.stderr


def test_help_of_the_command_line_imports_neither_torch_nor_ray():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['tarflow', '--help']\n"
        "try: runpy.run_module('tarflow', run_name='__main__')\n"
        "except SystemExit as ended: code = ended.code\n"
        "found = {m.partition('.')[0] for m in sys.modules} & {'torch', 'ray'}\n"
        "sys.exit(f'exit {code}, imported {found}' if code or found else 0)\n"
    )
    ended = python(code)
    assert ended.returncode == 0, ended.stderr
    assert "train" in ended.stdout
