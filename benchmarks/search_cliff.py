"""Measure how often a search falls off a cliff when it is told of divergences, and when not.

    python benchmarks/search_cliff.py [--seeds 5] [--trials 40]

Nothing is trained. BPD and KID are planted: both fall with the learning rate until it is 1.1 times
the study's, and beyond that every run diverges. Prints the share of trials after the random ones
that diverge, if a diverged trial is told the worst scores, as searches do, and if it is told as a
failure, which Optuna's sampler ignores.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import optuna

from sweeps.design.outcomes import WORST
from sweeps.design.presets import load
from sweeps.design.study import resolve_study
from sweeps.search import middle
from sweeps.searching.explore import STARTUP, Suggester
from sweeps.searching.journal import open_journal, open_study
from sweeps.searching.space import TrainingSpace

EDGE = 1.1  # of the learning rate over the study's
TOLD: dict[str, dict[str, Any]] = {
    "worst scores": {"result": {"bpd": WORST, "kid": WORST}},
    "failure": {"error": True},
}


def main() -> None:
    """Search with several seeds each way, and print the shares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="number of searches each way")
    parser.add_argument("--trials", type=int, default=40, help="trials of a search")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for told, answer in TOLD.items():
        shares = [share(answer, arguments.trials, seed) for seed in range(arguments.seeds)]
        listed = ", ".join(f"{value:.0%}" for value in shares)
        print(f"told {told}: {statistics.mean(shares):.0%} of later trials diverge ({listed})")


def share(answer: dict[str, Any], trials: int, seed: int) -> float:
    """Return the share of the trials after the random ones that diverge.

    Args:
        answer: What a diverged trial reports; see `Suggester.on_trial_complete`.
        trials: Trials of the search.
        seed: Seed of the suggestions.
    """
    study = resolve_study(load("tiny"))
    space = TrainingSpace(study, middle(study.budgets))
    diverged = []
    with tempfile.TemporaryDirectory() as folder:
        journal = open_journal(Path(folder))
        told = open_study(space, journal)
        search = Suggester(space, told, journal, seed, trials, Path(folder))
        for trial in map(str, range(trials)):
            ratio = (search.suggest(trial) or {})["lr_ratio"]
            diverged.append(ratio > EDGE)
            scores = {"bpd": 3 - ratio, "kid": 2 - ratio}
            search.on_trial_complete(trial, **answer if diverged[-1] else {"result": scores})
    return statistics.mean(diverged[STARTUP:])


if __name__ == "__main__":
    main()
