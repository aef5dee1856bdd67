"""All machines of a cluster have to run the same code: runs are named by their configs alone."""

import hashlib
import platform
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from sweeps.running.cluster import answers_of, living
from tarflow.errors import UserError

PACKAGES = ("tarflow", "sweeps", "analysis")
ANSWER_SECONDS = 60.0  # time for all machines to start a process and to read their files
REMEDY = (
    "`ray up -y` with your cluster file sends your code to all machines and restarts Ray; on "
    "machines without a cluster file, install the same environment"
)


def installed() -> dict[str, str]:
    """Return what decides the numbers of a run on this machine: versions, and a hash per file.

    >>> sorted(installed())[:2]
    ['Python', 'analysis/__init__.py']
    """
    python = ".".join(platform.python_version_tuple()[:2])
    found = {"Python": python, "torch": version("torch").partition("+")[0]}
    for package in PACKAGES:
        folder = _folder(package)
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder.parent)
            hidden = any(part.startswith((".", "__pycache__")) for part in name.parts)
            if path.is_file() and not hidden:
                found[name.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _folder(package: str) -> Path:
    """Return where a package lies, without importing it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no package {package}")
    return Path(spec.origin).parent


def check_same_code() -> None:
    """Make sure that all machines of the cluster that Ray has joined run the code of this one.

    Machines that are lost meanwhile are left out.

    Raises:
        UserError: If a machine runs other code, another Python or another torch, or does not
            answer, naming it.
    """
    mine = installed()
    for host, theirs in _ask_machines():
        if isinstance(theirs, RayTaskError):  # its code is so old that it lacks this module
            reason = str(theirs).strip().splitlines()[-1]
            raise UserError(f"{host} cannot run this code ({reason}): {REMEDY}")
        if different := difference(mine, theirs):
            raise UserError(f"{host} {different}: {REMEDY}")


def _ask_machines() -> list[tuple[str, dict[str, str] | RayTaskError]]:
    """Return the name of each other machine with its `installed`, or the error raised there.

    Raises:
        UserError: If a machine does not answer in `ANSWER_SECONDS`.
    """
    here = ray.get_runtime_context().get_node_id()
    task = ray.remote(num_cpus=0, max_retries=0)(installed)
    answers: dict[str, tuple[str, dict[str, str] | RayTaskError]] = {}
    end = time.monotonic() + ANSWER_SECONDS
    while silent := [node for node in living() if node["NodeID"] not in {here, *answers}]:
        if time.monotonic() > end:
            raise UserError(
                f"{', '.join(map(_name, silent))} did not answer in {ANSWER_SECONDS:.0f} s: "
                "restart Ray there, or take the machine out of the cluster"
            )
        for node, answer in answers_of(silent, task, ANSWER_SECONDS):
            if isinstance(answer, RayError) and not isinstance(answer, RayTaskError):
                time.sleep(0.5)  # lost, or too new for a task to be placed there: look again
            else:
                answers[node["NodeID"]] = _name(node), answer
    return list(answers.values())


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def difference(mine: dict[str, str], theirs: dict[str, str]) -> str:
    """Say how another machine differs from this one; return an empty string if it does not.

    >>> difference({"Python": "3.11", "torch": "2.14.1"}, {"Python": "3.12", "torch": "2.14.1"})
    'has Python 3.12, this machine 3.11'
    """
    names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    if not names:
        return ""
    first = names[0]
    if "/" not in first:
        return f"has {first} {theirs.get(first)}, this machine {mine.get(first)}"
    more = f" and {len(names) - 1} other files differ" if names[1:] else " differs"
    return f"runs other code than this machine: {first}{more}"
