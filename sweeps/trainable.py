"""Runs as Ray Tune trials, and what a run needs around it on any machine of a cluster.

A run that fails is a row at once, for it would fail again. The death of its process travels to the
driver, which has it go on from its last state.
"""

import contextlib
import gc
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sweeps.expect import sharing
from sweeps.space import SEED, SamplingSpace, Space, TrainingSpace
from sweeps.study import Planned
from tarflow import record
from tarflow.errors import UserError
from tarflow.storage import locate
from tarflow.train.preemption import Preempted
from tarflow.train.trunk import trunk_of

Report = Callable[[dict[str, Any]], None]


def carry_out(run: Planned, out: str, home: str, report: Report) -> dict[str, Any]:
    """Do one run in this process and return its row (empty on all workers but the first).

    Args:
        run: what to do.
        out: folder of the study.
        home: working folder of the driver, from which relative data paths are read.
        report: gets progress; see `tarflow.train.loop.train`.
    """
    from tarflow.evaluate.sample_quality import reference_quality
    from tarflow.run import run as carry

    study = locate(out)
    folder = study / "runs" / run.run_id
    trunk = trunk_of(run.config, run.trunk, run.marks, study) if run.trunk else None
    reference = study / "reference.json"  # what real images score, once for a study
    with workplace(home):
        row = carry(run.config, folder, run.role, run.label, report, trunk)
        if row and run.config.evaluation.samples and not reference.exists():
            record.write_json(reference, reference_quality(run.config))
    return row


def attempt(run: Planned, out: str, home: str, report: Report) -> dict[str, Any]:
    """Do one run that goes on alone; a failure is its row.

    Raises:
        UserError: for a user's mistake, which no other run can get around.
        Preempted: if the process has to end.
    """
    from tarflow.run import record_failure

    try:
        return carry_out(run, out, home, report)
    except (UserError, Preempted):
        raise
    except Exception as error:
        folder = locate(out) / "runs" / run.run_id
        return record_failure(run.config, folder, run.role, run.label, error)


@contextlib.contextmanager
def reporting() -> Iterator[Report]:
    """Give a report to Tune that does not wait: for ever, if the process is about to end."""
    from ray import tune

    waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def forward() -> None:
        while progress := waiting.get():
            tune.report(progress)

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield waiting.put
    finally:
        waiting.put(None)
    thread.join()  # but not after an error: if the process has to end, nobody listens any more


@contextlib.contextmanager
def workplace(home: str) -> Iterator[None]:
    """Work where relative data paths are right, and leave a process that can be used again."""
    import torch

    if not gc.get_freeze_count():
        gc.freeze()  # what is imported by now stays: looking through it costs 0.2 s a run
    with contextlib.chdir(home if Path(home).is_dir() else os.curdir):
        yield
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def trial(config: Mapping[str, Any], runs: Sequence[Planned], out: str, home: str) -> None:
    """Carry out the small run numbered `config["index"]`: a Tune function trainable."""
    from ray import tune

    run = runs[config["index"]]
    with reporting() as report:
        row = attempt(run, out, home, report)
    tune.report({"run_id": run.run_id, "status": row["status"], "bpd": row.get("bpd")})


def train_candidate(config: Mapping[str, Any], space: TrainingSpace, out: str, home: str) -> None:
    """Carry out the run that a search suggests: a Tune function trainable."""
    from ray import tune

    run = single_threaded(space.planned(config))
    with reporting() as report:
        row = attempt(run, out, home, report)
    tune.report({"status": row["status"], **scores(space, config, out)})


def sample_setting(
    config: Mapping[str, Any], spaces: Mapping[str, SamplingSpace], out: str, home: str
) -> None:
    """Sample from a finished run as a search suggests: a Tune function trainable."""
    from ray import tune

    from tarflow.evaluate.checkpoint_scores import evaluate_setting

    space = spaces[config["run_id"]]
    with workplace(home):
        evaluate_setting(locate(out) / "runs" / space.run_id, space.sampler(config), SEED)
    tune.report(scores(space, config, out))


def scores(space: Space, config: Mapping[str, Any], out: str) -> dict[str, float | None]:
    """Return the objectives of a trial that has ended, by name; None where it failed."""
    found = space.values(config, locate(out)) or []
    return dict(zip_longest(space.objectives, found))


def single_threaded(run: Planned) -> Planned:
    """Give a run one thread unless it asks for more, so that small runs sit side by side."""
    execution = run.config.execution
    threads = execution.threads or 1
    return replace(run, config=replace(run.config, execution=replace(execution, threads=threads)))


def resources(runs: Sequence[Planned], gpus: float) -> dict[str, float]:
    """Return what one small trial holds, enough for any of the runs."""
    needs = {"cpu": float(max(run.config.execution.threads for run in runs))}
    if gpus and any(run.config.execution.device != "cpu" for run in runs):
        needs["gpu"] = 1 / sharing(run.config for run in runs)
    return needs
