"""A batch of Ray Tune trials: what they share, what is told of them, when to stop, how it went."""

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import NodeDiedError, RayError
from ray.train import WorkerGroupError
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from rich.console import Console

from sweeps.design.outcomes import WORST
from sweeps.design.study import PlannedRun
from sweeps.failures import FAILURES, ProcessDied, commonest, last_errors
from sweeps.lease import Lease
from sweeps.pricing.limits import NO_LIMITS, WOULD_PASS, Limits
from sweeps.pricing.sharing import Sharing
from sweeps.running.cluster import Cluster, grown
from sweeps.running.growth import GrowingLimiter
from sweeps.running.notice import DefersSigterm, draining
from sweeps.running.placement import AVOIDED, HealthyMachines, NotPickled, placement
from sweeps.watching.live import LivePage, publishing
from sweeps.watching.progress import Progress, Revised
from tarflow.errors import UserError
from tarflow.record import read_result

RETRIES = 2  # of a run whose process dies again and again at the same image


@dataclass(frozen=True)
class BatchContext:
    """What all batches of a command share."""

    out: Path  # folder of the study, absolute
    cluster: Cluster
    lease: Lease  # of the folder
    console: Console
    page: LivePage
    seed: int = 0  # of a search's suggestions
    limits: Limits = NO_LIMITS
    used: float = 0.0  # device-seconds that earlier batches of the command have used
    sharing: Sharing | None = None  # what runs on one GPU were measured to do


@dataclass(frozen=True)
class Outcome:
    """How a batch went."""

    rows: tuple[Mapping[str, Any], ...]  # of the tasks that ended here, done or failed
    left: int  # number of tasks that did not end
    missing: tuple[str, ...]  # names of those of them that are known
    stopped: str  # why the rest was not carried out; empty if everything was
    device_seconds: float  # spent here on training and evaluation
    devices: float  # of the cluster
    device: str  # what runs occupy: core or GPU
    occupied: float  # seconds times devices of all tasks, failed ones and their starts included
    revised: Revised | None  # what its runs should take, seen from the end of the first few

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(
            rows=self.rows + other.rows,
            left=self.left + other.left,
            missing=self.missing + other.missing,
            stopped=self.stopped or other.stopped,
            device_seconds=self.device_seconds + other.device_seconds,
            devices=self.devices,
            device=self.device,
            occupied=self.occupied + other.occupied,
            revised=self.revised or other.revised,
        )

    @property
    def failed(self) -> list[Mapping[str, Any]]:
        """Rows of the tasks that failed."""
        return [row for row in self.rows if row["status"] == "failed"]


class StopConditions(NotPickled, tune.Stopper):
    """Stops a batch: a user's mistake, a lost lease, a limit, or failures in a row."""

    def __init__(self, progress: Progress, context: BatchContext, devices: float) -> None:
        """Watch over a batch.

        Args:
            progress: Its progress.
            context: What all batches of the command share.
            devices: Devices that a slot of the progress occupies.
        """
        self.progress, self.context, self.devices = progress, context, devices
        self.keeps_room: Callable[[], bool] = lambda: False  # for a run larger than the trials
        self.reason = ""
        self.too_tight = ""  # the option whose limit the last task that may not start would pass

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stop a single run: that would leave a hole in the study."""
        del trial_id, result
        return False

    def stop_all(self) -> bool:
        """Tell whether to stop, and remember why."""
        rows, context = self.progress.rows, self.context
        if self.progress.mistake:
            self.reason = str(self.progress.mistake)
        elif context.lease.lost:
            self.reason = "another driver has taken the folder over"
        elif option := self.limit_passed():
            self.reason = f"{option} is used up"
        elif len(rows) >= FAILURES and (errors := last_errors(list(rows.values()))):
            which = "first" if len(errors) == len(rows) else "last"
            self.reason = f"the {which} {len(errors)} runs all failed, {commonest(errors)}"
        return bool(self.reason)

    def limit_passed(self) -> str:
        """Return the option whose limit the command has passed; empty if none."""
        limits, used = self.context.limits, self.context.used
        if limits is NO_LIMITS:  # this is asked many times a second
            return ""
        return limits.passed(time.time(), used + self.occupied())

    def occupied(self) -> float:
        """Return the device-seconds that the tasks of this batch have used so far."""
        return self.devices * self.progress.slot_seconds_used()

    def allows(self, name: str = "") -> bool:
        """Tell whether a task may start: it and what runs should end within the limits.

        Args:
            name: Name of the task; empty if it is not known in advance.
        """
        if self.context.limits is NO_LIMITS:
            return True
        progress, limits = self.progress, self.context.limits
        seconds = progress.cautious_seconds(name)
        running = sum(
            max(progress.cautious_seconds(task) - passed, 0.0) * progress.width(task)
            for task, passed in progress.seconds_since_start().items()
        )
        to_come = self.devices * (running + seconds * progress.width(name))
        used = self.context.used + self.occupied() + to_come
        option = limits.passed(time.time() + seconds, used)
        self.too_tight = option or self.too_tight
        return not option

    def outcome(
        self, device_seconds: float, on_gpus: bool, missing: tuple[str, ...] = ()
    ) -> Outcome:
        """Return how the batch went, at its end.

        Args:
            device_seconds: Seconds spent, times the devices that were occupied.
            on_gpus: Whether these devices are GPUs; otherwise they are cores.
            missing: Names of the tasks that did not end, if they are known.

        Raises:
            UserError: The mistake that a worker found.
        """
        progress, cluster = self.progress, grown(self.context.cluster)
        if progress.mistake:
            raise progress.mistake
        rows = tuple(progress.rows.values())
        devices, device = (cluster.gpus, "GPU") if on_gpus else (cluster.cpus, "core")
        left = progress.total - len(rows)
        stopped = self.reason
        if left and not stopped and self.too_tight:
            stopped = f"{WOULD_PASS} {self.too_tight}"
        revised = progress.revised
        if revised:  # a slot takes several devices, or a part of one
            revised = replace(revised, slot_seconds=self.devices * revised.slot_seconds)
        occupied = self.occupied()
        return Outcome(
            rows, left, missing, stopped, device_seconds, devices, device, occupied, revised
        )


class ProgressCallback(NotPickled, tune.Callback):
    """Tells the progress what happens to trials that train, and records those that died."""

    def __init__(
        self, task_of: Callable[[dict[str, Any]], Any], out: Path, progress: Progress
    ) -> None:
        """Observe the trials of a batch.

        Args:
            task_of: Returns the task that a trial's config stands for.
            out: Folder of the study.
            progress: Progress of the batch.
        """
        self.task_of, self.out, self.progress = task_of, out, progress

    def ended(self, task: Any, result: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the row of a trial that has ended by itself; None if it was stopped."""
        del result
        result_file = read_result(self.out / "runs" / task.run_id)
        return result_file["run"] if result_file else None

    def died(self, task: Any, error: Exception) -> None:
        """Record a task whose process could not do so itself."""
        record_death(task, self.out, error, self.progress)

    def on_trial_start(self, *, trial: Trial, **_: Any) -> None:  # type: ignore[override]
        """Note the start."""
        self.progress.start(self.task_of(trial.config))

    def on_trial_result(  # type: ignore[override]
        self, *, trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        """Note where the run has started, or how far it has come."""
        if "node" in result:
            run_id = self.task_of(trial.config).run_id
            self.progress.machines.started(run_id, result["node"], result["hostname"])
        if "images" in result:
            self.progress.report(self.task_of(trial.config), result)

    def on_trial_complete(self, *, trial: Trial, **_: Any) -> None:  # type: ignore[override]
        """Note the end."""
        task = self.task_of(trial.config)
        if row := self.ended(task, trial.last_result):
            self.progress.end(task, row)

    def on_trial_recover(self, *, trial: Trial, **_: Any) -> None:  # type: ignore[override]
        """Say that the run resumes; only deaths without progress in between count as retries."""
        task = self.task_of(trial.config)
        cause = cause_of(error_of(trial))
        if isinstance(cause, UserError):
            self.progress.mistake = cause
            return
        deaths = self.progress.interrupted(task, cause, self.out)
        trial.run_metadata.num_failures = deaths
        if deaths:
            self.progress.lost(task, cause)
        needs: Any = trial.placement_group_factory
        avoided = self.progress.machines.avoided(task.run_id)
        trial.update_resources(placement(needs.required_resources, avoided, draining()))

    def on_trial_error(self, *, trial: Trial, **_: Any) -> None:  # type: ignore[override]
        """Record the failure; a user's mistake ends the batch."""
        self.died(self.task_of(trial.config), error_of(trial))


class ScoringCallback(ProgressCallback):
    """Tells the progress what happens to trials that score a finished run or its samples."""

    def ended(self, task: Any, result: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the score, infinite without finite samples; None if the trial was stopped."""
        del task
        name = self.progress.objective
        score = result.get(name)
        if score is None:
            return None
        return {"status": "done", name: score if score < WORST else math.inf}

    def on_trial_recover(self, *, trial: Trial, **_: Any) -> None:  # type: ignore[override]
        """End the batch on a user's mistake; anything else is tried again silently."""
        if isinstance(mistake := cause_of(error_of(trial)), UserError):
            self.progress.mistake = mistake

    def died(self, task: Any, error: Exception) -> None:
        """Record the failure: samples have no row on disk."""
        cause = cause_of(error)
        if isinstance(cause, UserError):
            self.progress.mistake = cause
            return
        reason = str(cause).splitlines()[0] if str(cause) else "died"
        row = {"status": "failed", "run_id": task.run_id, "label": task.label, "error": reason}
        self.progress.end(task, row)


def record_death(run: PlannedRun, out: Path, error: Exception, progress: Progress) -> None:
    """Write the row and error.txt of a run whose process could not.

    A user's mistake is no failed run: the progress keeps it, and the batch ends with it.
    """
    from tarflow.run import record_failure  # imports torch, which the driver rarely needs

    cause = cause_of(error)
    if isinstance(cause, UserError):
        progress.mistake = cause
        return
    cause.add_note(str(error))
    folder, host = out / "runs" / run.run_id, progress.machines.name_of(run.run_id)
    row = record_failure(run.config, folder, run.role, run.label, cause, host, run.tags)
    progress.end(run, row)


def error_of(trial: Trial) -> Exception:
    """Return the error that ended a trial last, as Ray wraps it."""
    path = trial.pickled_error_file  # get_pickled_error reads a copy that is made only later
    if not path or not Path(path).exists():
        return RuntimeError("it ended without a message")
    error: Exception = ray.cloudpickle.loads(Path(path).read_bytes())
    return error


def cause_of(error: Exception) -> Exception:
    """Return what the run itself raised, out of what Ray wrapped around it."""
    if isinstance(error, WorkerGroupError):
        failures = [error.worker_failures[rank] for rank in sorted(error.worker_failures)]
        died = (each for each in failures if hasattr(each, "health_check_failure"))
        return cause_of(next(died, failures[0]))  # the others only saw a broken connection
    for wrapped in ("controller_failure", "health_check_failure", "cause"):
        if isinstance(cause := getattr(error, wrapped, None), Exception):
            return cause_of(cause)
    if isinstance(error, RayError):
        # Ray wraps the death of a node into that of an actor, whose cause is only in its message.
        lost = "node has died" in str(error) or isinstance(error, NodeDiedError)
        return ProcessDied(machine_lost=lost)
    return error


def run_trials(
    trainable: Callable[[dict[str, Any]], None],
    needs: Mapping[str, float],
    stop: StopConditions,
    callback: tune.Callback,
    search: Searcher,
    samples: int,
    scheduler: TrialScheduler | None = None,
) -> None:
    """Carry out Tune trials side by side, quietly. Ray's own files are thrown away.

    Args:
        trainable: Function trainable; it writes the results to the study's folder, and reports.
        needs: Resources of one trial.
        stop: Stop conditions of the batch; its progress knows the number of trials at a time.
        callback: Observes the trials.
        search: Suggests configs.
        samples: Most trials.
        scheduler: Stops trials early; by default all run to their end.
    """
    amounts = {name.upper(): amount for name, amount in needs.items()}
    trainable.__mixins__ = (DefersSigterm,)  # type: ignore[attr-defined]  # Tune inherits from it
    with tempfile.TemporaryDirectory(prefix="tarflow-", ignore_cleanup_errors=True) as scratch:
        tune.Tuner(
            tune.with_resources(
                trainable, lambda config: placement(amounts, *config.get(AVOIDED, ((), ())))
            ),
            tune_config=tune.TuneConfig(
                search_alg=HealthyMachines(
                    GrowingLimiter(search, needs, stop.progress),
                    stop.progress.machines,
                    stop.keeps_room,
                ),
                num_samples=samples,
                scheduler=scheduler,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=scratch,
                stop=stop,
                callbacks=[callback],
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                verbose=0,
            ),
        ).fit()


def run_batch(
    context: BatchContext,
    trainable: Callable[[dict[str, Any]], None],
    needs: Mapping[str, float],
    progress: Progress,
    callback: tune.Callback,
    search: Callable[[StopConditions], Searcher],
    samples: int,
    scheduler: TrialScheduler | None = None,
) -> Outcome:
    """Carry out a batch of trials and return how it went.

    Args:
        context: What all batches of the command share.
        trainable: Function trainable of `run_trials`.
        needs: Resources of one trial.
        progress: Progress of the batch, not started yet.
        callback: Observes the trials.
        search: Makes the searcher of `run_trials`.
        samples: Most trials.
        scheduler: Scheduler of `run_trials`.

    Raises:
        UserError: If a worker found a user's mistake.
    """
    devices = occupied(needs)
    stop = StopConditions(progress, context, devices)
    with progress, publishing(progress, context.page):
        if progress.total:
            run_trials(trainable, needs, stop, callback, search(stop), samples, scheduler)
    return stop.outcome(devices * sum(progress.seconds.values()), "gpu" in needs)


def occupied(needs: Mapping[str, float]) -> float:
    """Return the number of GPUs, or else of cores, that a trial occupies."""
    return needs.get("gpu", needs["cpu"])
