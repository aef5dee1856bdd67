"""Who may import whom, checked in fresh interpreters."""

import importlib.util
import pkgutil
import subprocess
import sys

import pytest

TORCH_FREE = ("tarflow", "tarflow.config", "tarflow.record", "tarflow.cost", "tarflow.data")


def modules(package):
    """Names of a package and of everything below it, found without importing any of it."""
    names = [package]
    for folder in importlib.util.find_spec(package).submodule_search_locations:
        for found in pkgutil.iter_modules([folder], prefix=f"{package}."):
            if not found.name.endswith(".__main__"):
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
    assert offenders(["json", "tarflow.model"], ["torch"]) == "tarflow.model imports torch"


def test_tarflow_never_imports_ray():
    assert offenders(modules("tarflow"), ["ray"]) == ""


def test_help_plans_and_tables_never_import_torch():
    there = [name for name in TORCH_FREE if importlib.util.find_spec(name)]
    assert offenders(there, ["torch", "ray"]) == ""


def test_analysis_imports_neither_torch_nor_ray():
    names = modules("analysis")
    if importlib.util.find_spec("analysis.__main__"):
        names.append("analysis.__main__")
    assert offenders(names, ["torch", "ray"]) == ""


def test_help_of_the_command_line_imports_neither_torch_nor_ray():
    if not importlib.util.find_spec("tarflow.__main__"):
        pytest.skip("the command line is not there yet")
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
