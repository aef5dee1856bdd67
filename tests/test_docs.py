"""The pages people read agree with the code, and what they tell people to type works."""

import ast
import importlib
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import Law, plant

from analysis.laws.forms import FORMS
from tarflow import record
from tarflow.forecasts import FORECASTS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLES = (ROOT / "docs" / "tables.md").read_text()


def documented(title):
    """Rows (column, type, marked as never null) of the table under a heading."""
    section = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TABLES, re.M | re.S)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (always)? ?\| \S.* \|$", section[1], re.M)
    return [(name, kind, bool(always)) for name, kind, always in rows]


@pytest.mark.parametrize(
    ("title", "schema"),
    [
        ("runs.parquet", record.RUNS),
        ("evaluations.parquet", record.EVALUATIONS),
        ("forecasts.parquet", FORECASTS),
        ("runs/&lt;run_id&gt;/curve.parquet", record.CURVE),
        ("runs/&lt;run_id&gt;/previews.parquet", record.PREVIEWS),
        ("runs/&lt;run_id&gt;/images.parquet", record.IMAGES),
    ],
)
def test_every_column_is_documented_in_order_with_its_type(title, schema):
    assert documented(title) == [(f.name, str(f.type), not f.nullable) for f in schema]


def test_every_form_of_law_is_documented_with_its_formula():
    page = (ROOT / "docs" / "laws.md").read_text()
    rows = re.findall(r"^\| `(.+?)` \| `(.+?)` \| \S.* \| \S.* \|$", page, re.M)
    assert rows == [(name, form.formula) for name, form in FORMS.items()]


def test_links_between_pages_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_decisions_are_numbered_and_say_context_decision_consequence():
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(page.name[:3]) for page in records] == list(range(1, len(records) + 1))
    for page in records:
        text = page.read_text()
        assert text.startswith(f"# {page.name[:3]} ")
        parts = re.findall(r"^## (\w+)$", text, re.M)
        assert parts == ["Context", "Decision", "Consequence"], page.name
        assert len(text.split()) < 450, f"{page.name} is longer than half a page"


def test_contributing_stays_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 60


@dataclass(frozen=True)
class Block:
    """Something to type or to save, as a page shows it."""

    not_run: str  # why the tests only parse it
    language: str
    file: str
    text: str


def blocks(page):
    """Return the code of a page, without indentation, in its order."""
    pattern = r'(?:<!-- not run: (.+?) -->\s*)?^( *)```(\w*)(?: title="(.+?)")?\n(.*?)^ *```$'
    return [
        Block(why, language, file, re.sub(f"^{indent}", "", text, flags=re.M))
        for why, indent, language, file, text in re.findall(pattern, page.read_text(), re.M | re.S)
    ]


def commands(text):
    """Return the words of each command of a block, and the variables set for it."""
    begun = ""
    for line in text.replace("\\\n", " ").splitlines():
        begun += line + "\n"
        try:
            words = shlex.split(begun, comments=True)
        except ValueError:  # a quotation that continues in the next line
            continue
        begun = ""
        while words:
            end = next((i for i, word in enumerate(words) if word in ("&&", "|")), len(words))
            command, words = words[:end], words[end + 1 :]
            variables = {}
            while command and re.match(r"[A-Z_]+=", command[0]):
                name, _, variables[name] = command.pop(0).partition("=")
            if command:
                yield command, variables


def carry_out(words, patch):
    """Do in this process what a command does; return its exit code, or `None` if it is unknown."""
    program, *arguments = words
    patch.setattr(sys, "argv", ["", *arguments[1:]])
    if words[:2] == ["python", "-m"] and arguments[1] in ("tarflow", "analysis"):
        return importlib.import_module(f"{arguments[1]}.__main__").main(arguments[2:])
    if program == "python" and arguments[0].startswith(("sweeps/", "examples/")):
        try:
            runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
        except SystemExit as ended:
            return ended.code or 0
        return 0
    if program == "ray":
        from ray.scripts.scripts import cli

        end = arguments.index("--") if "--" in arguments else len(arguments)
        cli.commands[arguments[0]].make_context(arguments[0], arguments[1:end])
        if arguments[end + 1 :]:
            return carry_out(["python", arguments[end - 1], *arguments[end + 1 :]], patch)
        return 0
    if "pip" in words:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        named = re.findall(r"\[(.+)\]", " ".join(words))
        return int(not set(",".join(named).split(",")) <= {"", *extras["optional-dependencies"]})
    return None


@pytest.fixture
def only_parsed(monkeypatch):
    """Let every command read its command line, and then do nothing."""

    def idle(function):
        return wraps(function)(lambda *_, **__: 0)

    for name in ("tarflow", "analysis"):
        known = importlib.import_module(f"{name}.__main__").COMMANDS
        for command, function in known.items():
            monkeypatch.setitem(known, command, idle(function))
    driver = importlib.import_module("sweeps.driver")
    parse = driver.run_command_line
    monkeypatch.setattr(
        driver, "run_command_line", lambda kind, name, _: parse(kind, name, lambda _: 0)
    )


@pytest.mark.usefixtures("only_parsed")
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_commands_that_are_not_run_have_the_flags_that_pages_name(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for block in blocks(page):
        if block.not_run and block.language in ("sh", "bash"):
            for words, _ in commands(block.text):
                if words[0] == "python" and words[1].startswith("examples/"):
                    assert (ROOT / words[1]).exists(), words
                else:
                    code = carry_out(words, monkeypatch)
                    assert not code, (words, capsys.readouterr().err)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """What the pages take for granted: two studies, photos, tables of runs."""
    folder = tmp_path_factory.mktemp("material")
    plant(folder / "studies" / "digits")
    plant(folder / "studies" / "digits-wide", law=replace(Law(), A=27.0), seed=1)
    runpy.run_path(str(ROOT / "examples" / "import_folder.py"))["paint"](folder / "photos")
    rng = np.random.default_rng(0)
    size, data = 10 ** rng.uniform(6, 9, 24), 10 ** rng.uniform(8, 11, 24)
    loss = (1.7 + 400 / size**0.34 + 410 / data**0.28) * np.exp(0.003 * rng.normal(size=24))
    pd.DataFrame({"N": size, "D": data, "loss": loss}).to_csv(folder / "runs.csv", index=False)
    could = pd.DataFrame({"N": [1e9, 3e9, 1e9], "D": [1e10, 3e10, 1e11]})
    could.to_csv(folder / "could.csv", index=False)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_what_pages_tell_people_to_type_works(page, material, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path / "cache"))
    to_run = [one for one in blocks(page) if one.language in ("python", "sh", "bash")]
    typed = "".join(block.text for block in to_run if not block.not_run)
    for source in material.iterdir():
        if source.name in typed:
            (tmp_path / source.name).symlink_to(source)
    names = {}
    for block in blocks(page):
        if block.file:
            Path(block.file).write_text(block.text)
        if block.not_run or block.language not in ("python", "sh", "bash"):
            continue
        if block.language == "python":
            exec(compile(block.text, page.name, "exec"), names)
            continue
        for words, variables in commands(block.text):
            with monkeypatch.context() as patch:
                for name, value in variables.items():
                    patch.setenv(name, value)
                code = carry_out(words, patch)
            assert code == 0, (words, code, capsys.readouterr().err)


def test_every_message_of_troubleshooting_is_one_of_the_code():
    """A placeholder of an f-string is written as an ellipsis."""
    texts = set()
    for package in ("tarflow", "sweeps", "analysis"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [getattr(part, "value", "…") for part in node.values]
                    texts.add("".join(p if isinstance(p, str) else "…" for p in parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.add(node.value)
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = re.findall(r"^\| `(.+?)` \|", page, re.M)
    assert len(messages) > 20
    assert [one for one in messages if not any(one in text for text in texts)] == []


def test_the_site_builds_and_asks_for_nothing_from_the_network(tmp_path):
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 50
    loads = r"<(?:script|img|link|iframe)[^>]*(?:src|href)=[\"']?(?:https?:)?//[^\"' >]+"
    outside = {found for page in pages for found in re.findall(loads, page.read_text())}
    assert not outside
