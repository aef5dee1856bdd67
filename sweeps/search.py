"""Search for hyperparameters of TarFlow with Optuna on Ray: what trains, then what only samples.

This file may be sent alone to a machine that has the package installed, as `ray submit` does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from tyro.conf import arg

from sweeps.design.declared import (
    check_comparable,
    declare,
    resolve_or_explain,
    study_folder,
    with_kept,
    with_tags,
)
from sweeps.design.outcomes import PRUNED, is_pruned
from sweeps.design.presets import folder_of
from sweeps.design.ranges import NAMES
from sweeps.design.study import Study
from sweeps.driver import Command, StudyOptions, default, drive, run_command_line, study_asked_for
from sweeps.pricing import expect
from sweeps.pricing.plan import STARTING_SECONDS, Plan, make_plan
from sweeps.pricing.words import summary
from sweeps.searching.rungs import QUARTERS, Expected, Rule, expected, share
from sweeps.searching.sampler_space import FEWEST_SAMPLES, SamplingSpace
from sweeps.searching.space import STARTUP, TrainingSpace
from tarflow import human
from tarflow.errors import UserError, check_seed

if TYPE_CHECKING:
    import pandas as pd

    from sweeps.running.batch import BatchContext, Outcome

CHECKPOINTS = 6  # number of checkpoints to sample from that a plan assumes
NO_CANDIDATE = (
    "no candidate has finished: lower optim.lr or search.lr_ratio, or ask for more --trials"
)


@dataclass(frozen=True, kw_only=True)
class Options(StudyOptions):
    """Search for hyperparameters of TarFlow with Optuna on Ray.

    The search has two levels. The outer one trains: it varies depth, channels, noise and learning
    rate around the base of a study, gives every candidate the same training FLOPs, and minimises
    both bits per dimension (BPD) and the distance of samples to held-out images (KID). The inner
    one trains nothing: it samples from the checkpoints that matter (the Pareto front, and the best
    of three noise bands) with other guidance, attention temperature and denoising. KID picks a
    setting on one half of the draws and is reported on the other half.

    The section `search` of a study file sets the ranges, which otherwise lie around the study's
    own sizes. --prune stops poor candidates early: at 1/4 and 1/2 of its budget each is compared
    with the others at the same share, by the BPD of held-out images, and the worse half ends
    there. With hyperband a third of the candidates is compared later or never, in case poor
    beginnings end well.

    The plan and its price come first. To resume, or to add trials, run the command again: nothing
    is trained or sampled twice. The study folder then holds search.journal (open it with
    optuna-dashboard), report.html with the search in it, and best.yaml, the run to train next.

    Exit codes: 0 done, 1 some runs failed or did not end, 2 the command was wrong.
    """

    trials: Annotated[int, arg(metavar="N")] = 40
    """Candidates to train, earlier ones included; one that crashes is replaced."""
    sampler_trials: Annotated[int, arg(metavar="M")] = 12
    """Sampler settings to try on each checkpoint; 0 tries none."""
    budget: Annotated[float | None, default("the study's middle budget", "FLOPS")] = None
    """Training FLOPs of each candidate."""
    prune: Annotated[Rule | None, default("none", "RULE")] = None
    """Stop poor candidates early, by halving or hyperband."""
    seed: int = 0
    """Seed of the suggestions."""


def main() -> None:
    """Run the command line; a user's mistake ends with one line and exit code 2."""
    run_command_line(Options, "python sweeps/search.py", search)


def search(options: Options) -> int:
    """Plan, confirm, search and report; return the exit code.

    Raises:
        UserError: For a user's mistake.
    """
    return drive(options, Search(options))


class Search(Command):
    """A search on both levels, and its report."""

    again = "they count as the worst candidates; more --trials add others"

    def __init__(self, options: Options) -> None:
        study = study_asked_for(options)
        self.options = options
        self.out = study_folder(options.out or folder_of(options.study), study)
        study, missing = resolve_or_explain(study, self.out, options.dry_run)
        study = with_tags(with_kept(study, self.out), options.tag)
        self.space = TrainingSpace(
            study, middle(study.budgets) if options.budget is None else options.budget
        )
        check(options, self.space)
        self.plan = self.price()
        self.gpus, self.seed = self.plan.gpus, options.seed
        self.todo = self.unfinished()
        if self.todo:
            self.extra_seconds = sampling_seconds(self.plan, options.sampler_trials)
        self.lines = [*in_words(options, self.space, self.plan, self.extra_seconds), *missing]

    def price(self) -> Plan:
        """Return the price of the candidates."""
        return make_search_plan(self.options, self.space, self.out)

    def unfinished(self) -> bool:
        """Tell whether a candidate or a sampler setting is left to try."""
        from sweeps.searching.journal import tried

        trials, settings = self.options.trials, self.options.sampler_trials
        if len(tried(self.space, self.out)) < trials:
            return True
        spaces = self.sampling_spaces() if settings else []
        return any(len(tried(space, self.out)) < settings for space in spaces)

    def begin(self) -> None:
        """Write study.yaml, unless the folder holds a study already."""
        if (self.out / "study.yaml").exists():
            check_comparable(self.space.study, self.out)
        else:
            declare(self.space.study, self.out)

    def run(self, context: "BatchContext") -> "Outcome":
        """Train candidates, then sample from the checkpoints that matter."""
        from sweeps.running.trainable import resources
        from sweeps.searching.explore import search_runs, search_settings

        needs = resources([row.run.config for row in self.plan.rows], context)
        options, space = self.options, self.space
        outcome = search_runs(space, options.trials, needs, context, options.prune)
        spaces = self.sampling_spaces() if options.sampler_trials else []
        if spaces:
            context.console.print(f"{len(spaces)} checkpoints to sample from", soft_wrap=True)
            outcome += search_settings(spaces, options.sampler_trials, needs, context)
        return outcome

    def report(self, outcome: "Outcome | None", wall: float, console: Console) -> bool:
        """Choose on the Pareto front, and write report.html and best.yaml."""
        del outcome, wall
        from sweeps.searching.choice import conclude_search

        self.tidy()
        candidates = self.candidates()
        if len(candidates):
            conclude_search(candidates, self.space.study, self.out, console)
        else:
            console.print(NO_CANDIDATE, soft_wrap=True)
        return len(candidates) > 0

    def tidy(self) -> None:
        """Remove the checkpoints of pruned candidates whose process ended while writing one."""
        from sweeps.searching.journal import open_journal, open_study, pruned
        from tarflow.train.checkpoint import remove_checkpoints

        for trial in pruned(open_study(self.space, open_journal(self.out))):
            remove_checkpoints(self.out / "runs" / self.space.name(trial.params) / "state")

    def sampling_spaces(self) -> list[SamplingSpace]:
        """Return the spaces of sampler settings, one for each checkpoint that matters."""
        from sweeps.searching.choice import worth_sampling

        candidates = self.candidates()
        if not len(candidates):
            return []
        rows = worth_sampling(candidates)[["run_id", "label", "config"]].itertuples(index=False)
        return [replace(SamplingSpace.of(*row), search=self.space.study.search) for row in rows]

    def candidates(self) -> "pd.DataFrame":
        """Return the finished candidates, each at its best sampler setting."""
        from sweeps.searching.choice import scored_runs
        from sweeps.searching.journal import completed, open_journal, open_study

        study = open_study(self.space, open_journal(self.out))
        return scored_runs(self.out, [self.space.name(each.params) for each in completed(study)])


def middle(budgets: Sequence[float]) -> float:
    """Return the middle budget, the lower one of two: small, but not the smallest of all.

    >>> middle((6e10, 2e11, 6e11)), middle((3e9, 1e9))
    (200000000000.0, 1000000000.0)
    """
    return sorted(budgets)[(len(budgets) - 1) // 2]


def check(options: Options, space: TrainingSpace) -> None:
    """Refuse a search that makes no sense.

    Raises:
        UserError: If a number is out of range, saying what to change.
    """
    if options.trials < 1 or options.sampler_trials < 0:
        raise UserError("--trials must be at least 1, --sampler-trials at least 0")
    check_seed(options.seed)
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
    from sweeps.searching.journal import draws, tried  # Optuna is needed from here on

    done = tried(space, out)[: options.trials]
    random = draws(space, options.trials - len(done), options.seed)
    runs = [space.run_of(params) for params in done + random]
    over = {run.run_id: PRUNED for run in runs if is_pruned(out / "runs" / run.run_id)}
    plan = make_plan(space.study, out, runs=runs, left_out=over)
    plan = replace(plan, retry=False)  # what diverged is a candidate as well
    return pruned_plan(plan, options.prune, space.study) if options.prune and plan.left else plan


def pruned_plan(plan: Plan, rule: Rule, study: Study) -> Plan:
    """Return a plan whose candidates take the time that pruning leaves them on average."""
    left, foreseen = plan.left, to_expect(plan, rule)
    count, rows = len(left), []
    for row in plan.rows:
        if row in left:
            scoring = expect.scoring_seconds(row.run.config, study.validation_images, plan.rate)
            saved = row.seconds.train * (1 - foreseen.budgets / count)
            saved += row.seconds.evaluate * (1 - foreseen.finished / count)
            saved -= scoring * foreseen.scored / count
            row = replace(row, left=max(row.left - saved, 0.0))
        rows.append(row)
    return replace(plan, rows=tuple(rows))


def to_expect(plan: Plan, rule: Rule) -> Expected:
    """Return what should become of the candidates that a plan still has to train."""
    random = min(max(STARTUP - len(plan.rows) + len(plan.left), 0), len(plan.left))
    return expected(random, len(plan.left) - random, rule)


def pruning_in_words(plan: Plan, rule: Rule | None) -> list[str]:
    """Return a line on what ended candidates and what pruning should do; none if nothing."""
    over, count = len(plan.left_out), len(plan.left)
    words = [f"{plan.given_up} diverged before"] * bool(plan.given_up)
    words += [f"{over} stopped early before"] * bool(over)
    if rule and count:
        foreseen = to_expect(plan, rule)
        words += [
            f"pruning by {rule} at {' and '.join(map(share, QUARTERS))} of the budget: of "
            f"{count} candidates to come about {foreseen.finished:.0f} should train to their end, "
            f"which saves {human.percent(1 - foreseen.budgets / count)} of their training FLOPs; "
            "the time above takes it into account"
        ]
    return ["; ".join(words)] if words else []


def sampling_seconds(plan: Plan, trials: int) -> float:
    """Return the expected wall time of the inner search, all settings guided."""
    if not trials:
        return 0.0
    seconds = [
        expect.sampling_seconds(row.run.config, plan.rate, guided=True) for row in plan.rows
    ]
    mean = sum(seconds) / len(seconds)
    return STARTING_SECONDS / 2 + mean * CHECKPOINTS * trials / plan.slots


def in_words(options: Options, space: TrainingSpace, plan: Plan, seconds: float) -> list[str]:
    """Say what a search varies and what it costs.

    Args:
        options: Options of the command.
        space: Space of the outer search.
        plan: Price of the outer search.
        seconds: Expected wall time of the inner search.
    """
    model, evaluation = space.study.base.model, space.study.base.evaluation
    outer = [f"layers split {' or '.join(words)}" for words in space.words.values()]
    outer += [f"{NAMES[name]} {human.interval(space.ends(name, {}))}" for name in space.ranges]
    lines = [
        f"{space.study.name}: {options.trials} candidates of {space.budget:.3g} training FLOPs, "
        f"{model.patch}x{model.patch} patches",
        "  " + " · ".join(outer),
        *(f"  if {case.condition()}: {case.in_words()}" for case in space.study.search.cases),
        *(f"  {line}" for line in summary(plan)),
        *(f"  {line}" for line in pruning_in_words(plan, options.prune)),
    ]
    if options.trials and options.sampler_trials:
        example = SamplingSpace("", "", space.study.base, space.study.search)
        inner = [f"{key} {human.interval(ends)}" for key, ends in example.ranges.items()]
        inner += [f"{key} {', '.join(choices)}" for key, choices in example.words.items()]
        lines += [
            f"then {options.sampler_trials} sampler settings of each checkpoint that matters, "
            f"{evaluation.samples} samples each",
            "  " + " · ".join(inner),
            f"  no training; with {CHECKPOINTS} checkpoints about {human.seconds(seconds)}",
        ]
    return lines


if __name__ == "__main__":
    main()
