"""What ended a run, out of what Ray says about it, and the row that it leaves."""

from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.train import WorkerGroupError
from ray.tune.experiment import Trial

from sweeps.study import Planned
from sweeps.watch import Watch
from tarflow.errors import UserError

RETRIES = 2  # of a run whose process dies again and again at the same image


def end_failed(run: Planned, out: Path, error: Exception, watch: Watch) -> None:
    """Leave the row and error.txt of a run whose process could not.

    A user's mistake is no failed run: it is kept for `run_all` to raise.
    """
    from tarflow.run import record_failure  # imports torch, which the driver rarely needs

    cause = cause_of(error)
    if isinstance(cause, UserError):
        watch.mistake = cause
        return
    cause.add_note(str(error))
    row = record_failure(run.config, out / "runs" / run.run_id, run.role, run.label, cause)
    watch.progress.end(run, row)


def error_of(trial: Trial) -> Exception:
    """Return what ended a trial last, as Ray has it."""
    path = trial.pickled_error_file  # get_pickled_error looks where it is copied only later
    if not path or not Path(path).exists():
        return RuntimeError("it ended without a message")
    error: Exception = ray.cloudpickle.loads(Path(path).read_bytes())
    return error


def cause_of(error: Exception) -> Exception:
    """Return what a run itself raised, out of what Ray wrapped around it."""
    if isinstance(error, WorkerGroupError):
        return cause_of(error.worker_failures[min(error.worker_failures)])
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return cause
    if isinstance(error, RayError):
        return RuntimeError("the process died (out of memory?)")
    return error
