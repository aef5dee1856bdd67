"""Carry out planned runs on a Ray cluster, so that every one of them ends as a row.

What is done is decided by `runs/<run id>/result.json` and by nothing else: Ray's own state is
thrown away. Small runs are Tune trials side by side, longest first but branches after their trunk
has come so far, in processes that are used again; runs of several workers follow one after
another, as Ray Train jobs. A run whose process or machine dies goes on from its last state.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from rich.console import Console

from sweeps.branches import Start, marked, starts, state_left, tidy
from sweeps.failures import RETRIES, cause_of, end_failed, error_of
from sweeps.lease import Lease
from sweeps.machines import Cluster, check_shared, slots
from sweeps.progress import Progress, Task
from sweeps.study import Planned
from sweeps.trainable import resources, single_threaded, trial
from sweeps.watch import Here, Outcome, Watch
from tarflow.errors import UserError
from tarflow.record import read_result

Named = Callable[[dict[str, Any]], Planned]
LOOK_SECONDS = 0.5  # between looks for the state that a run waits for, perhaps far away


def run_all(
    runs: Sequence[Planned],
    out: Path,
    expected: Mapping[str, float],
    where: Cluster,
    held: Lease,
    console: Console,
    limit: float | None = None,
) -> Outcome:
    """Carry out the runs that are not done yet.

    Args:
        runs: resolved; those that are done are left alone.
        out: folder of the study, absolute.
        expected: seconds of each run, by run id; longest go first.
        where: the cluster, inside `cluster()`.
        held: the lease of `out`.
        console: for progress.
        limit: on the monotonic clock; what has not ended then is stopped.

    Raises:
        UserError: if a run asks for more than the cluster has, `out` is not shared by it, or
            a worker finds a mistake in the config.
    """
    results = {run.run_id: read_result(out / "runs" / run.run_id) for run in runs}
    rows = [result["run"] for result in results.values() if result]
    done = [row for row in rows if row["status"] == "done"]
    finished = {row["run_id"] for row in done}
    todo = [single_threaded(run) for run in runs if run.run_id not in finished]
    todo.sort(key=lambda run: -expected[run.run_id])
    begin = starts(todo, out)
    todo = marked(todo, begin)
    small = [run for run in todo if run.config.execution.workers == 1]
    large = [run for run in todo if run.config.execution.workers > 1]
    needs = resources(small, where.gpus) if small else {"cpu": 1.0}
    count = slots(needs, where)
    _check_workers(large, where)
    check_shared(out, where)
    progress = Progress(
        len(todo), {run.run_id: expected[run.run_id] for run in todo}, count, console, done
    )
    watch = Watch(progress, held, limit)
    with progress, scratch() as storage:
        if small:
            tune_trials(
                tune.with_parameters(trial, runs=small, out=str(out), home=str(Path.cwd())),
                {},
                Teller(lambda config: small[config["index"]], out, watch),
                Session(storage, needs, count, watch),
                Queue(small, begin, out, progress),
                len(small),
            )
        if large:
            from sweeps.large import run_large  # imports torch, which the driver rarely needs
        for run in large:
            if not watch.stop_all():
                run_large(run, out, where, storage, watch)
    ended = {name: row for name, row in progress.rows.items() if row["status"] == "done"}
    tidy(runs, finished | ended.keys(), out)
    gpus = where.gpus > 0 and any(run.config.execution.device != "cpu" for run in todo)
    spent = sum(
        min(row["wall_seconds"], progress.seconds[run_id])
        * _devices(progress.runs[run_id], needs, gpus)
        for run_id, row in ended.items()
    )
    return watch.outcome(len(todo), spent, where, gpus)


class Queue(Here, Searcher):
    """Gives out runs in order, a branch once its trunk has left its state or has ended."""

    def __init__(
        self, runs: Sequence[Planned], begin: Mapping[str, Start], out: Path, progress: Progress
    ) -> None:
        """Hold the runs of a batch; `begin` says which of them have to wait."""
        super().__init__()
        self.left = list(enumerate(runs))
        self.begin, self.out, self.progress = begin, out, progress
        self.looked: dict[str, float] = {}  # when for the state of each run

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the first run that need not wait; None if all have to."""
        del trial_id
        for each in self.left:
            if self.ready(each[1]):
                self.left.remove(each)
                return {"index": each[0]}
        return None

    def ready(self, run: Planned) -> bool:
        """Tell whether a run need not wait any more."""
        start, now = self.begin[run.run_id], time.monotonic()
        if not start.after or start.after in self.progress.rows:
            return True
        reached = self.progress.latest.get(start.after, {}).get("images", 0)
        looked = self.looked.get(run.run_id, -LOOK_SECONDS)
        if reached < start.images or now - looked < LOOK_SECONDS:
            return False
        self.looked[run.run_id] = now
        return state_left(run, start.images, self.out)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing follows from how a run has ended."""

    def save(self, checkpoint_path: str) -> None:
        """Leave nothing: the study's folder remembers."""


class Teller(Here, tune.Callback):
    """Tells the progress what happens to Tune's trials, and makes rows of those that died."""

    def __init__(self, planned: Named, out: Path, watch: Watch) -> None:
        """Serve trials; `planned` says which run a trial's config stands for."""
        self.planned, self.out, self.watch = planned, out, watch
        self.progress = watch.progress
        self.reached: dict[str, int] = {}  # images at which the process of each run died last

    def on_trial_start(self, *, trial: Trial, **_: Any) -> None:  # type: ignore[override]
        """Note the start."""
        self.progress.start(self.planned(trial.config))

    def on_trial_result(  # type: ignore[override]
        self, *, trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        """Note how far it has come."""
        if "images" in result:
            self.progress.report(self.planned(trial.config), result)

    def on_trial_complete(self, *, trial: Trial, **_: Any) -> None:  # type: ignore[override]
        """Note the row that the run left; without one it was stopped."""
        run = self.planned(trial.config)
        if result := read_result(self.out / "runs" / run.run_id):
            self.progress.end(run, result["run"])

    def on_trial_recover(self, *, trial: Trial, **_: Any) -> None:  # type: ignore[override]
        """Say that the run goes on; only deaths without progress in between are counted."""
        run = self.planned(trial.config)
        if isinstance(mistake := cause_of(error_of(trial)), UserError):
            self.watch.mistake = mistake
            return
        images = self.progress.latest.get(run.run_id, {}).get("images", 0)
        if images > self.reached.get(run.run_id, 0):
            trial.run_metadata.num_failures = 1
        self.reached[run.run_id] = images
        self.progress.note(f"{run.label}: its process died; going on from its last state")

    def on_trial_error(self, *, trial: Trial, **_: Any) -> None:  # type: ignore[override]
        """Write the row that the run could not."""
        end_failed(self.planned(trial.config), self.out, error_of(trial), self.watch)


@dataclass(frozen=True)
class Session:
    """What all trials of a batch share."""

    storage: Path  # for Ray's own state
    needs: Mapping[str, float]  # that one trial holds
    slots: int  # trials that go on at a time
    watch: Watch


def tune_trials(
    work: Callable[[dict[str, Any]], None],
    space: Mapping[str, Any],
    teller: tune.Callback,
    session: Session,
    search: Searcher | None = None,
    samples: int = 1,
) -> None:
    """Carry out small runs as Tune trials, quietly, each ending as a row.

    Args:
        work: function trainable; it leaves the folder of the run, and reports.
        space: of `work`'s config.
        teller: hears what happens to each trial.
        session: of the batch.
        search: suggests configs; without it `space` is walked through in order.
        samples: trials, or repeats of the whole space.
    """
    tune.Tuner(
        tune.with_resources(work, dict(session.needs)),
        param_space=dict(space),
        tune_config=tune.TuneConfig(
            search_alg=search,
            num_samples=samples,
            max_concurrent_trials=session.slots,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(session.storage),
            stop=session.watch,
            callbacks=[teller],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    ).fit()


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder of this machine for Ray's own state, which nobody reads again."""
    with tempfile.TemporaryDirectory(prefix="tarflow-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _check_workers(runs: Sequence[Planned], where: Cluster) -> None:
    """Refuse a run that waits for ever."""
    for run in runs:
        workers = run.config.execution.workers
        if workers * run.config.execution.threads > where.cpus:
            raise UserError(
                f"{run.label} asks for {workers} workers, the cluster has {where.cpus} CPUs: "
                "lower base.execution.workers, or join a larger cluster through RAY_ADDRESS"
            )


def _devices(run: Task, needs: Mapping[str, float], gpus: bool) -> float:
    """Return the GPUs, or else the cores, that a run holds; a small one what all of them do."""
    execution = run.config.execution
    if execution.workers == 1:
        return needs["gpu" if gpus else "cpu"]
    return execution.workers * (1 if gpus else execution.threads)
