"""Who may import whom, checked in fresh interpreters."""

import importlib.util
import pkgutil
import subprocess
import sys

TORCH_FREE = (
    *("tarflow", "tarflow.config", "tarflow.identity", "tarflow.record"),
    *("tarflow.cost", "tarflow.data.images", "tarflow.data.importing"),
)


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
    assert offenders(["json", "tarflow.model.flow"], ["torch"]) == "tarflow.model imports torch"


def test_tarflow_never_imports_ray():
    assert offenders(modules("tarflow"), ["ray"]) == ""


def test_help_plans_and_tables_never_import_torch():
    assert offenders(TORCH_FREE, ["torch", "ray"]) == ""


def test_analysis_imports_neither_torch_nor_ray():
    assert offenders(modules("analysis"), ["torch", "ray"]) == ""


def test_of_this_project_analysis_imports_what_describes_runs_only():
    code = (
        "import importlib, sys\n"
        f"for name in {modules('analysis')!r}: importlib.import_module(name)\n"
        "print(*sorted(m for m in sys.modules if m.partition('.')[0] in ('tarflow', 'sweeps')))\n"
    )
    ended = python(code)
    assert ended.returncode == 0, ended.stderr
    names = ("config", "cost", "errors", "identity", "record", "storage")
    allowed = {"tarflow", *(f"tarflow.{name}" for name in names)}
    assert set(ended.stdout.split()) <= allowed


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
