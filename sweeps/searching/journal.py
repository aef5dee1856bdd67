"""The memory of a search: an Optuna journal, which optuna-dashboard and optuna.load_study open.

The runs on disk are the truth. Trials that a killed search left open in the journal are closed
accordingly: those whose run has ended get its values, the others fail and are suggested first.
A run that diverged gets the worst values, so that Optuna's sampler learns to avoid its neighbours.
A run that was pruned gets the state PRUNED and no values: its BPD at a share of the budget and its
missing samples cannot be compared with those of whole runs, and Optuna takes no intermediate
values for several objectives. The sampler then counts it as worse than every complete trial, and
no Pareto front has it.
"""

import json
import shutil
import sys
import tempfile
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweeps.design.outcomes import WORST
from sweeps.searching.space import Space
from tarflow.errors import UserError
from tarflow.storage import Remote

FILE = "search.journal"


def open_journal(out: Path) -> JournalStorage:
    """Return the journal of a study's folder, a new one if there is none; repair a damaged one."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = out / FILE
    if isinstance(path, Remote):
        return JournalStorage(RemoteJournal(path))
    if path.exists():
        cut_to_whole_lines(path, path)
    return JournalStorage(JournalFileBackend(str(path)))


def cut_to_whole_lines(file: Path, name: Path) -> None:
    """Cut a journal after its last whole line, as a crash or a full disk may break the next one.

    Optuna would refuse to read the file, and would add its next line to the broken one.

    Args:
        file: Local file of the journal.
        name: What to call it in the message.
    """
    if _whole_bytes(file) == file.stat().st_size:
        return
    lock = JournalFileSymlinkLock(str(file))
    lock.acquire()  # another process may have been writing that line
    try:
        whole, size = _whole_bytes(file), file.stat().st_size
        if whole < size:
            with file.open("r+b") as journal:
                journal.truncate(whole)
            print(
                f"{name} was damaged: cut {size - whole} bytes after its last whole line",
                file=sys.stderr,
            )
    finally:
        lock.release()


def _whole_bytes(file: Path) -> int:
    """Return the number of bytes before the first line that is not a whole JSON object."""
    whole = 0
    with file.open("rb") as journal:
        for line in journal:
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not isinstance(entry, dict) or not line.endswith(b"\n"):
                break
            whole += len(line)
    return whole


class RemoteJournal(JournalFileBackend):
    """A journal on an object store: a local file of the driver, uploaded whenever it grows."""

    def __init__(self, path: Remote) -> None:
        """Continue from the file at this address, if there is one."""
        self.path = path
        folder = tempfile.mkdtemp(prefix="tarflow-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.copy = Path(folder) / path.name
        if path.exists():
            self.copy.write_bytes(path.read_bytes())
            cut_to_whole_lines(self.copy, path)
        super().__init__(str(self.copy))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add to the journal."""
        super().append_logs(logs)
        self.path.write_bytes(self.copy.read_bytes())


def open_study(space: Space, journal: JournalStorage) -> optuna.Study:
    """Return the Optuna study of a space; a new one starts with the space's own suggestions.

    Raises:
        UserError: If it has chosen between other words, which Optuna does not allow to change.
    """
    study = optuna.create_study(
        storage=journal,
        study_name=space.title,
        directions=["minimize"] * len(space.objectives),
        load_if_exists=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(space.objectives))  # for the dashboard
    trials = study.get_trials(deepcopy=False)
    if not trials:
        for params in space.starts:
            study.enqueue_trial(params)
    for name, now in space.words.items():
        for before in (trial.distributions.get(name) for trial in trials):
            if isinstance(before, CategoricalDistribution) and before.choices != now:
                words = ", ".join(map(str, before.choices))
                raise UserError(
                    f"the search in {FILE} chose {name} from {words}, which cannot change within "
                    "a search: choose another --out"
                )
    return study


def settle(study: optuna.Study, space: Space, out: Path) -> None:
    """Close every open trial, since nothing works on it any more; tell what diverged unheard."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        values = _values(trial.params, space, out)
        if values:
            study.tell(trial.number, values)
            continue
        if values is not None and space.pruned(trial.params, out):
            tell_pruned(study, trial.number)
            continue
        study.tell(trial.number, state=TrialState.FAIL)
        if values is None and trial.params:
            study.enqueue_trial(trial.params)
    for trial in _diverged_unheard(study, space, out):
        worst = [WORST] * len(space.objectives)
        study.add_trial(
            create_trial(params=trial.params, distributions=trial.distributions, values=worst)
        )


def ended(study: optuna.Study, space: Space, out: Path) -> list[dict[str, Any]]:
    """Return the parameters of the trials that count: with values, pruned or diverged."""
    trials = completed(study) + pruned(study) + _diverged_unheard(study, space, out)
    return [trial.params for trial in trials]


def _diverged_unheard(study: optuna.Study, space: Space, out: Path) -> list[FrozenTrial]:
    """Return failed trials, one for each run, that diverged but have no values in the journal.

    Earlier releases told Optuna that a run which diverged had failed.
    """
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    diverged = {
        space.name(trial.params): trial
        for trial in failed
        if WORST in (_values(trial.params, space, out) or [])
    }
    for trial in completed(study):
        diverged.pop(space.name(trial.params), None)
    return list(diverged.values())


def tried(space: Space, out: Path) -> list[dict[str, Any]]:
    """Return the same, without writing to a folder that has no search yet."""
    if not (out / FILE).exists():
        return []
    journal = open_journal(out)
    if space.title not in optuna.get_all_study_names(journal):
        return []
    return ended(open_study(space, journal), space, out)


def completed(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that have values."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def pruned(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that were stopped because others did better at the same share."""
    return study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))


def tell_pruned(study: optuna.Study, trial: optuna.Trial | int) -> None:
    """Tell Optuna that a trial was pruned."""
    study.tell(trial, state=TrialState.PRUNED)


def draws(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """Return random parameters, to price a search before it has made suggestions."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        directions=["minimize"] * len(space.objectives),
        sampler=optuna.samplers.RandomSampler(seed=seed),
    )
    trials = [study.ask() for _ in range(count)]
    for trial in trials:
        space(trial)
    return [trial.params for trial in trials]


def fresh_seed(seed: int, trials: int) -> int:
    """Return a seed that a resumed search has not used before."""
    return int(np.random.SeedSequence([seed, trials]).generate_state(1)[0])


def _values(params: dict[str, Any], space: Space, out: Path) -> list[float] | None:
    complete = space.base.keys() <= params.keys()  # it may have been killed while suggesting
    return space.values(params, out) if complete else None
