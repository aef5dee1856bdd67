"""Slurm's script, run for real with stand-ins for `srun` and `scontrol`."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_slurm_script_is_sound_and_says_how_to_start_it(tmp_path):
    script = ROOT / "cluster" / "slurm.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    ended = subprocess.run(
        ["bash", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert "start this with: sbatch cluster/slurm.sh" in ended.stderr


def submit_to_slurm(tmp_path, srun, **environment):
    """Run the script on two "machines", which are both this one, with real Ray.

    Args:
        tmp_path: Folder of the test.
        srun: Text of the program that stands in for `srun`.
        **environment: Variables of the job.

    Returns:
        The process that has ended, and the home folder.
    """
    tools, home, submit = tmp_path / "bin", tmp_path / "home", tmp_path / "submit"
    for folder in (tools, home / ".ray", submit / "sweeps"):
        folder.mkdir(parents=True)
    host = socket.gethostname()
    (tools / "scontrol").write_text(f"#!/bin/sh\nprintf '%s\\n' {host} other\n")
    (tools / "srun").write_text(srun)
    for tool in tools.iterdir():
        tool.chmod(0o755)
    (submit / "sweeps" / "scaling.py").write_text(
        "import sys, ray\n"
        "ray.init(address='auto', logging_level='ERROR')\n"
        "print('args', *sys.argv[1:])\n"
        "print('nodes', len(ray.nodes()), 'cpus', int(ray.cluster_resources()['CPU']))\n"
        "sys.exit(7)\n"
    )
    # Short, since sockets below it have at most 107 characters; apart from any other Ray here.
    temporary = Path(f"/tmp/slurm-test-{os.getpid()}")
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "RAY_TMPDIR": str(temporary),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "two",
        "SLURM_SUBMIT_DIR": str(submit),
        "SLURM_CPUS_PER_TASK": "3",
        **environment,
    }
    try:
        temporary.mkdir()
        ended = subprocess.run(
            ["bash", ROOT / "cluster" / "slurm.sh", "digits", "--yes"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ended, home


DROP_FLAGS = "#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\n"  # those of srun


@pytest.mark.cluster
def test_slurm_script_runs_the_sweep_on_every_machine(tmp_path):
    ended, home = submit_to_slurm(tmp_path, f'{DROP_FLAGS}exec "$@"\n')
    assert "args digits --yes" in ended.stdout, ended.stdout + ended.stderr
    assert "nodes 2 cpus 6" in ended.stdout
    assert ended.returncode == 7  # the sweep's own code, as DESIGN promises
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o077 == 0


@pytest.mark.slow
@pytest.mark.ray
def test_slurm_script_says_which_machine_is_missing(tmp_path):
    only_head = f'{DROP_FLAGS}[[ $* == *--head* ]] && exec "$@"\n'
    ended, _ = submit_to_slurm(tmp_path, only_head, JOIN_SECONDS="30")
    assert ended.returncode == 1
    (error,) = (line for line in ended.stderr.splitlines() if line.startswith("error: "))
    assert "1 of 2 machines joined in 0.5 min; missing: other;" in error
    assert "args" not in ended.stdout


@pytest.mark.cluster
def test_slurm_script_ends_with_a_head_that_ends(tmp_path):
    ended, _ = submit_to_slurm(tmp_path, "#!/bin/bash\nexit 1\n")
    assert ended.returncode == 1
    assert f"Ray did not start on {socket.gethostname()}: see slurm-" in ended.stderr
