"""Search for hyperparameters of a tiny flow on digits, then ask Optuna what it remembers.

    python examples/search_digits.py

Half a minute on two cores. The last lines read like

    training-1e09: 3 trials, lowest BPD 2.953 at {'blocks': 2, 'layers': 1, 'channels': 16, ...}
    sampling-fb01dd2812: 2 trials, lowest KID 8.71 at {'guidance': 0.0, 'temperature': 1.0, ...}
"""

import tempfile
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from sweeps.search import Options, search


def main(out: Path) -> None:
    """Search, then read the journal as any program with Optuna may."""
    code = search(Options(study="tiny", trials=3, sampler_trials=2, out=out))
    journal = JournalStorage(JournalFileBackend(str(out / "search.journal")))
    for name in optuna.get_all_study_names(journal):
        study = optuna.load_study(study_name=name, storage=journal)
        best = min(study.get_trials(states=[optuna.trial.TrialState.COMPLETE]), key=lowest)
        what = "BPD" if name.startswith("training") else "KID"
        print(f"{name}: {len(study.trials)} trials, lowest {what} {lowest(best):.4g} ", end="")
        print(f"at {best.params}")
    raise SystemExit(code)


def lowest(trial: optuna.trial.FrozenTrial) -> float:
    """Return the first objective of a trial."""
    return trial.values[0]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
