"""From one planned run to a Ray task of the right size: a Tune trial, or a Ray Train job.

Both call `tarflow.run.run`; here is only what differs around it. Nothing is caught: a failure
travels to the driver, which makes a row of it.
"""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sweeps.space import SEED, SamplingSpace, Space, TrainingSpace
from sweeps.study import Planned
from tarflow import record

SMALL_GPU_BYTES = 4e9  # runs that need less share a GPU
SHARING = 4  # such runs per GPU

Report = Callable[[dict[str, Any]], None]


def carry_out(run: Planned, out: str, home: str, report: Report) -> dict[str, Any]:
    """Do one run in this process and return its row (empty on all workers but the first).

    Args:
        run: what to do.
        out: folder of the study.
        home: working folder of the driver, from which relative data paths are read.
        report: gets progress; see `tarflow.training.train`.
    """
    from tarflow.evaluation import reference_quality
    from tarflow.run import run as carry

    folder = Path(out) / "runs" / run.run_id
    reference = Path(out) / "reference.json"  # what real images score, once for a study
    with workplace(home):
        row = carry(run.config, folder, run.role, run.label, report)
        if row and run.config.evaluation.samples and not reference.exists():
            record.write_json(reference, reference_quality(run.config))
    return row


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
    row = carry_out(run, out, home, tune.report)
    tune.report({"run_id": run.run_id, "status": row["status"], "bpd": row.get("bpd")})


def train_candidate(config: Mapping[str, Any], space: TrainingSpace, out: str, home: str) -> None:
    """Carry out the run that a search suggests: a Tune function trainable."""
    from ray import tune

    run = single_threaded(space.planned(config))
    row = carry_out(run, out, home, tune.report)
    tune.report({"status": row["status"], **scores(space, config, out)})


def sample_setting(
    config: Mapping[str, Any], spaces: Mapping[str, SamplingSpace], out: str, home: str
) -> None:
    """Sample from a finished run as a search suggests: a Tune function trainable."""
    from ray import tune

    from tarflow.evaluation import evaluate_setting

    space = spaces[config["run_id"]]
    with workplace(home):
        evaluate_setting(Path(out) / "runs" / space.run_id, space.sampler(config), SEED)
    tune.report(scores(space, config, out))


def scores(space: Space, config: Mapping[str, Any], out: str) -> dict[str, float | None]:
    """Return the objectives of a trial that has ended, by name; None where it failed."""
    found = space.values(config, Path(out)) or []
    return dict(zip_longest(space.objectives, found))


def single_threaded(run: Planned) -> Planned:
    """Give a run one thread unless it asks for more, so that small runs sit side by side."""
    execution = run.config.execution
    threads = execution.threads or 1
    return replace(run, config=replace(run.config, execution=replace(execution, threads=threads)))


def resources(runs: Sequence[Planned], gpus: float) -> dict[str, float]:
    """Return what one small trial holds, enough for any of the runs."""
    from tarflow import cost

    needs = {"cpu": float(max(run.config.execution.threads for run in runs))}
    if gpus and any(run.config.execution.device != "cpu" for run in runs):
        largest = max(cost.memory(run.config).total for run in runs)
        needs["gpu"] = 1 / SHARING if largest < SMALL_GPU_BYTES else 1.0
    return needs


def train_large(
    run: Planned, out: str, home: str, storage: Path, gpus: float, report: Report
) -> None:
    """Carry out a run of several workers as a Ray Train job and wait for its end.

    Args:
        run: what to do; `execution.workers` says on how many workers.
        out: folder of the study.
        home: working folder of the driver.
        storage: for Ray Train's own files, which nobody reads again.
        gpus: that the cluster has; with none the workers meet over gloo.
        report: gets progress of the first worker; is sent to the workers.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    execution = run.config.execution
    use_gpu = bool(gpus) and execution.device != "cpu"

    def loop() -> None:
        carry_out(run, out, home, report)

    TorchTrainer(
        loop,
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=execution.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": execution.threads, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(name=run.run_id, storage_path=str(storage)),
    ).fit()
