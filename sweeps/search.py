"""Search for hyperparameters of TarFlow with Optuna on Ray: what trains, then what only samples.

This file may be sent alone to a machine that has the package installed (`ray submit` does so).
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from tyro.conf import arg

from analysis import human
from sweeps import commands, expect
from sweeps.declaration import check_comparable, declare
from sweeps.journal import begun, completed, draws, open_journal, open_study
from sweeps.lease import lease
from sweeps.plan import STARTING_SECONDS, Plan, comes_to, make_plan
from sweeps.presets import load
from sweeps.space import FEWEST_SAMPLES, RATES, SamplingSpace, TrainingSpace
from sweeps.trainable import resources, single_threaded, train_candidate
from tarflow import record
from tarflow.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from sweeps.explore import Place
    from sweeps.watch import Outcome

CHECKPOINTS = 6  # that a plan assumes will be sampled from


@dataclass(frozen=True, kw_only=True)
class Options:
    """Search for hyperparameters of TarFlow with Optuna on Ray.

    Two levels. The outer one trains: depth, channels, noise and learning rate around the base of
    a study, every candidate at the same training FLOPs, judged by bits per dimension (BPD) and by
    sample quality (KID), both to be small. The inner one trains nothing: it samples from the
    checkpoints that matter (the Pareto front, and the best of three noise bands) with other
    guidance, attention temperature and denoising; KID picks a setting on one half of the draws
    and is reported on the other half.

    The plan and its price come first. To resume, or to go on with more trials, run the command
    again: nothing is trained or sampled twice. The study folder then holds search.journal (open
    it with optuna-dashboard), report.html with the search in it, and best.yaml.

    Exit codes: 0 done, 1 some runs failed, 2 the command was wrong.
    """

    study: tyro.conf.Positional[str] = "digits"  # preset, YAML file or folder of a study
    trials: Annotated[int, arg(metavar="N")] = 40  # trained candidates, earlier ones included
    sampler_trials: Annotated[int, arg(metavar="M")] = 12  # sampler settings of each checkpoint
    budget: Annotated[float | None, arg(metavar="FLOPS")] = None  # by default the study's middle
    seed: int = 0  # of the suggestions
    out: Annotated[Path | None, arg(metavar="DIR")] = None  # or s3://...; default studies/<name>
    dry_run: bool = False  # print the plan and stop
    yes: bool = False  # do not ask before an expensive search


def main() -> None:
    """Run the command line; a user's mistake ends with one line and exit code 2."""
    commands.command(Options, "python sweeps/search.py", search)


def search(options: Options) -> int:
    """Plan, ask, search and report.

    Returns:
        The exit code: 0, or 1 if some runs failed.

    Raises:
        UserError: for a user's mistake.
    """
    study = load(options.study)
    out = commands.study_folder(options.out, study)
    study, missing = commands.resolved(study, options.dry_run)
    space = TrainingSpace(study, options.budget or middle(study.budgets))
    check(options, space)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    plan = make_search_plan(options, space, out)
    seconds = sampling_seconds(plan, options.sampler_trials)
    for line in in_words(options, space, plan, seconds):
        console.print(line, soft_wrap=True)
    if missing:
        console.print(f"the data are not here yet ({missing})")
    if options.dry_run:
        return 0
    if not commands.agreed(options.yes, commands.expensive(plan, seconds)):
        return 0
    return carry_out(options, space, plan, out, console)


def middle(budgets: Sequence[float]) -> float:
    """Return the middle budget, the lower one of two: small, but not the smallest of all.

    >>> middle((6e10, 2e11, 6e11)), middle((3e9, 1e9))
    (200000000000.0, 1000000000.0)
    """
    return sorted(budgets)[(len(budgets) - 1) // 2]


def check(options: Options, space: TrainingSpace) -> None:
    """Refuse a search that makes no sense.

    Raises:
        UserError: saying what to change.
    """
    if options.trials < 1 or options.sampler_trials < 0:
        raise UserError("--trials must be at least 1, --sampler-trials at least 0")
    if options.seed < 0:
        raise UserError(f"seed is {options.seed}: it must be 0 or more")
    if not 0 < space.budget < math.inf:
        raise UserError(f"budget is {space.budget:g}: it must be positive")
    samples = space.study.base.evaluation.samples
    if samples < FEWEST_SAMPLES:
        raise UserError(
            f"base.evaluation.samples is {samples}: a search compares samples, "
            f"ask for at least {FEWEST_SAMPLES}"
        )


def make_search_plan(options: Options, space: TrainingSpace, out: Path) -> Plan:
    """Price the candidates: those that are done, and random ones for those to come."""
    ended = begun(space, out)[: options.trials]
    coming = draws(space, options.trials - len(ended), options.seed)
    runs = [space.planned(params) for params in ended + coming]
    return make_plan(space.study, out, runs=runs)


def sampling_seconds(plan: Plan, trials: int) -> float:
    """Expect the wall time of the inner search: samples only, with and without guidance alike."""
    if not trials:
        return 0.0
    seconds = 0.0
    for line in plan.lines:
        seconds += 2 * expect.drawing_seconds(line.run.config, plan.rate) / len(plan.lines)
    return STARTING_SECONDS / 2 + seconds * CHECKPOINTS * trials / plan.slots


def in_words(options: Options, space: TrainingSpace, plan: Plan, seconds: float) -> list[str]:
    """Say what a search goes through and what it costs."""
    model, evaluation = space.study.base.model, space.study.base.evaluation
    sizes = [size.channels for size in space.study.sizes]
    ranges = {
        "blocks": space.blocks,
        "layers": space.layers,
        "channels": (min(sizes), max(sizes)),
        "learning rate, times the study's": RATES,
        "noise": space.noises,
    }
    outer = [f"{key} {human.interval(ends)}" for key, ends in ranges.items() if ends]
    lines = [
        f"{space.study.name}: {options.trials} candidates of {space.budget:.3g} training FLOPs, "
        f"{model.patch}x{model.patch} patches",
        "  " + " · ".join(outer),
        *(f"  {line}" for line in comes_to(plan)),
    ]
    if options.trials and options.sampler_trials:
        example = SamplingSpace("", "", space.study.base)
        inner = [f"{key} {human.interval(ends)}" for key, ends in example.ranges.items()]
        inner += [f"{key} {', '.join(found)}" for key, found in example.choices.items()]
        lines += [
            f"then {options.sampler_trials} sampler settings of each checkpoint that matters, "
            f"{evaluation.samples} samples each",
            "  " + " · ".join(inner),
            f"  no training; with {CHECKPOINTS} checkpoints about {human.seconds(seconds)}",
        ]
    return lines


def carry_out(
    options: Options, space: TrainingSpace, plan: Plan, out: Path, console: Console
) -> int:
    """Search on both levels, write the tables, the report and best.yaml.

    Returns:
        The exit code: 0, or 1 if some runs failed.
    """
    from sweeps import machines  # Ray is needed from here on only
    from sweeps.choice import conclude
    from sweeps.explore import Place

    with lease(out) as held:
        check_comparable(space.study, out)
        if not (out / "study.yaml").exists():
            declare(space.study, out)
        with machines.cluster(plan.gpus) as where:
            place = Place(out, where, held, console, options.seed)
            ends = [train(space, options.trials, plan, place)]
            found = trained(space, out)
            if options.sampler_trials and len(found):
                ends.append(sample(found, options.sampler_trials, plan, place))
                found = trained(space, out)
        record.gather(out)
        if len(found):
            conclude(found, space.study, out, console)
    failed = [row for end in ends for row in end.failed]
    for end in ends:
        if end.stopped:
            console.print(f"stopped early: {end.stopped}", style="red")
    if failed:
        console.print(f"{len(failed)} trials failed; their errors stand in {out}/runs/*/error.txt")
    return 1 if failed or any(end.stopped for end in ends) or not len(found) else 0


def train(space: TrainingSpace, trials: int, plan: Plan, place: "Place") -> "Outcome":
    """Carry out the outer search."""
    from ray import tune

    from sweeps.explore import explore
    from sweeps.progress import in_bits
    from sweeps.runner import Teller

    work = tune.with_parameters(
        train_candidate, space=space, out=str(place.out), home=str(Path.cwd())
    )
    return explore(
        place,
        [space],
        trials,
        work,
        needs(plan, place),
        lambda watch: Teller(space.planned, place.out, watch),
        in_bits,
    )


def sample(found: "pd.DataFrame", trials: int, plan: Plan, place: "Place") -> "Outcome":
    """Carry out the inner search on the checkpoints that matter."""
    from sweeps.checkpoints import that_matter
    from sweeps.sampling import search_settings

    columns = that_matter(found)[["run_id", "label", "config"]]
    spaces = [SamplingSpace.of(*row) for row in columns.itertuples(index=False)]
    place.console.print(f"{len(spaces)} checkpoints to sample from", soft_wrap=True)
    return search_settings(spaces, trials, needs(plan, place), place)


def needs(plan: Plan, place: "Place") -> dict[str, float]:
    """Return what one trial holds."""
    return resources([single_threaded(line.run) for line in plan.lines], place.where.gpus)


def trained(space: TrainingSpace, out: Path) -> "pd.DataFrame":
    """Return the finished candidates, each at its best sampler setting."""
    from sweeps.checkpoints import scored_runs

    study = open_study(space, open_journal(out))
    return scored_runs(out, [space.name(trial.params) for trial in completed(study)])


if __name__ == "__main__":
    main()
