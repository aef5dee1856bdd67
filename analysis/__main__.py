"""The command line of the analysis: `python -m analysis COMMAND`, commands as in `COMMANDS`."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tyro.conf import UseAppendAction

from tarflow.command_line import run_command
from tarflow.errors import UserError, exit_code_of


def report(study: Path, /, seed: int = 0, live: bool = False) -> int:
    """Fit the laws of a study and write its report.html.

    The page needs no network and no server: open it in a browser or send it by mail.
    Example: python -m analysis report studies/digits

    Args:
        study: Folder of a study.
        seed: Seed of the draws.
        live: Let the page reload itself until it is written again without this flag, as
            sweeps/scaling.py has it written while a study runs.
    """
    from analysis.report.page import write_report
    from tarflow.storage import locate

    page = write_report(locate(study), seed, live)
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB")
    return 0


def best(
    study: Path,
    /,
    flops: float | None = None,
    out: Path | None = None,
    seed: int = 0,
) -> int:
    """Write the config of the run to train next; its comments give the source of each number.

    Size and images follow the laws of the study; everything else follows its best run. The run has
    not been trained yet; what the laws predict for it is noted in forecasts.parquet of the study.
    Example: python -m analysis best studies/digits --flops 1e15

    Args:
        study: Folder of a study.
        flops: Budget of the run in training FLOPs; by default 4 times the largest trained so far.
        out: File to write; by default best.yaml in the study.
        seed: Seed of the draws.
    """
    from analysis.study.advice import check_budget, recommend
    from analysis.study.findings import find
    from analysis.study.folder import read_study
    from analysis.study.forecast import foretell, read_ledger
    from tarflow.config_files import to_yaml
    from tarflow.record import write_text
    from tarflow.storage import locate

    if flops is not None:
        check_budget(flops)  # the laws take seconds to fit
    folder = locate(study)
    findings = find(*read_study(folder), seed=seed, forecasts=read_ledger(folder))
    advice = recommend(findings, flops)
    foretell(findings, advice.config, folder, "best")
    path = out or folder / "best.yaml"
    command = f"Train it: python -m tarflow train {shlex.quote(str(path))}"
    write_text(path, to_yaml(advice.config, f"{advice.explanation}\n{command}"))
    print(advice.explanation)
    print(f"Wrote {path}. {command}")
    return 0


def fit(
    table: Path,
    /,
    loss: str,
    params: str = "",
    tokens: str = "",
    flops: str = "",
    x: str = "",
    input: UseAppendAction[tuple[str, ...]] = (),
    run: str = "",
    group: str = "",
    weights: str = "",
    form: UseAppendAction[tuple[str, ...]] = (),
    where: UseAppendAction[tuple[str, ...]] = (),
    predict: UseAppendAction[tuple[str, ...]] = (),
    budget: float | None = None,
    holdout: float | None = None,
    delta: float | None = None,
    draws: int = 1000,
    json: Path | None = None,
    report: Path | None = None,
    seed: int = 0,
) -> int:
    """Find the scaling law of any table of runs, and say what it predicts.

    --params with --tokens fits E + A / N^a + B / D^b and similar forms; --flops, or --x for any
    other column, fits E + A / C^a. Predictions are the average of several forms, each weighted by
    how well it predicts the more expensive rows from the cheaper ones; docs/laws.md lists them.
    CSV with any separator, Parquet and JSON lines are read, and cells such as 7B or 1,000,000.
    Rows that are left out are named; row 1 is the first below the header. Losses must be positive.
    Example: python -m analysis fit runs.csv --loss bpd --params N --tokens D --predict N=7B,D=2T

    Args:
        table: The file.
        loss: Column to explain.
        params: Column of model sizes.
        tokens: Column of data sizes.
        flops: Column of training FLOPs, for a law of compute alone.
        x: Column of a law of one other input, such as the examples of a learning curve.
        input: Another input of the forms, such as width=d_model, depth=layers, batch=batch_size or
            unique_tokens=U.
        run: Column that names the run of each row, if a run has several rows, such as checkpoints.
        group: Column of groups that share exponents, each with its own floor, such as data sets or
            noise levels.
        weights: Column that says how often each row counts.
        form: Form to fit instead of those that suit the columns, by name or as
            path/to/file.py:NAME.
        where: Condition on the rows, such as optimizer=adamw or 'loss<10'.
        predict: Run to predict, such as N=7B,D=2T (columns of the table). By
            default one with 4 times the largest compute.
        budget: Training FLOPs to find the best size for, counted as 6 N D; by default 4 times the
            largest.
        holdout: Share of the rows to fit, such as 0.8, to predict the more expensive ones.
        delta: Where Huber's loss turns linear, in ln(loss); 1e-3 is the published choice. By
            default it follows the residuals.
        draws: Number of draws behind the intervals.
        json: File to write the answer to.
        report: HTML page to write the answer to, with figures; it opens offline.
        seed: Seed of the draws.
    """
    from analysis.laws.forms import find_form
    from analysis.table.answer import ask, in_sentences, to_plain
    from analysis.table.law import Options
    from analysis.table.reading import read_columns
    from tarflow.human import size
    from tarflow.record import write_json

    options = Options(tuple(map(find_form, form)), delta, draws, seed)
    inputs = _inputs(params, tokens, flops, x, input)
    texts = {name: column for name, column in (("run", run), ("group", group)) if column}
    numbers = inputs | {"loss": loss} | ({"weights": weights} if weights else {})
    rows = read_columns(table, numbers, where, texts)
    asked = inputs | ({"group": group} if group else {})
    answer = ask(rows, asked, predict, budget, holdout, options)
    print("\n".join(in_sentences(answer)))
    if not answer.law.nothing:
        _print(_fit_table(answer.law.law.general, x))
    if json:
        write_json(json, to_plain(answer))
        print(f"Wrote {json}.")
    if report:
        from analysis.report.answer_page import write_answer

        write_answer(report, answer, table, loss)
        print(f"Wrote {report}: {size(report.stat().st_size)}.")
    return 0


def _inputs(
    params: str, tokens: str, flops: str, x: str, others: tuple[str, ...]
) -> dict[str, str]:
    """Return the columns that explain the loss, by the name of the input."""
    known = ("width", "depth", "blocks", "batch", "unique_tokens")
    more = {name: column for name, _, column in (pair.partition("=") for pair in others)}
    for name, column in more.items():
        if name not in known or not column:
            names = ", ".join(known)
            raise UserError(f"--input {name}={column}: write NAME=COLUMN; the names are {names}")
    alone = [column for column in (flops, x) if column]
    if len(alone) > 1 or (alone and (params or tokens or more)):
        raise UserError("give --flops alone, --x alone, or --params with --tokens")
    if alone:
        return {"flops": alone[0]}
    both = {name: column for name, column in (("params", params), ("tokens", tokens)) if column}
    if len(both) < 2 and not (tokens and more):
        raise UserError(
            "name the inputs: --params COLUMN --tokens COLUMN, --flops COLUMN, or --x COLUMN"
        )
    return both | more


def next_runs(
    table: Path,
    /,
    loss: str,
    params: str,
    tokens: str,
    candidates: Path,
    target: UseAppendAction[tuple[str, ...]] = (),
    budget: float | None = None,
    cost: str = "",
    count: int = 3,
    json: Path | None = None,
) -> int:
    """Say which runs to train next, so that a prediction becomes more certain for little cost.

    Each choice lowers the expected uncertainty of the prediction most per unit of cost, given the
    runs so far and those chosen before it. It counts what each form of law leaves open, that no
    form is exactly right far from its runs, and the noise of a run. A table with a header and no
    row gives a first design.
    Example: python -m analysis next runs.csv --loss bpd --params N --tokens D --candidates
    could.csv --target N=7B,D=2T

    Args:
        table: Runs so far; files are read as `fit` reads them.
        loss: Column of losses; they must be positive.
        params: Column of model sizes, in both files.
        tokens: Column of data sizes, in both files.
        candidates: File of the runs that could be trained, one a row.
        target: Run to predict, such as N=7B,D=2T.
        budget: Training FLOPs (6 N D) whose best size is to be predicted, instead of --target.
        cost: Column of the candidates with their cost, in any unit; by default 6 N D FLOPs.
        count: Number of runs to choose.
        json: File to write the answer to.
    """
    from rich.table import Table

    from analysis.table.proposals import in_words, lines, propose, to_plain
    from tarflow.record import write_json

    columns = {"params": params, "tokens": tokens, "loss": loss}
    proposal = propose(
        table, candidates, columns, targets=target, budget=budget, cost=cost, count=count
    )
    print("\n".join([in_words(proposal), *proposal.notes]))
    shown = Table("", "row", params, tokens, cost or "FLOPs", "uncertainty before", "after")
    for cells in lines(proposal):
        shown.add_row(*cells)
    _print(shown)
    if json:
        write_json(json, to_plain(proposal))
        print(f"Wrote {json}.")
    return 0


def compare(
    a: Path,
    b: Path,
    c: Path | None = None,
    /,
    out: Path = Path("compare.html"),
    seed: int = 0,
) -> int:
    """Compare studies of the same images: at equal compute, at equal quality, and run by run.

    Says which study is better and how much compute it saves, with intervals, and writes a page
    with the laws of all studies, the differences of runs with the same label and seed, and the
    settings that differ. Those differences are paired image by image, so they are far more precise
    than two separate errors.
    Example: python -m analysis compare studies/digits studies/digits-wide

    Args:
        a: Folder of the study that the others are compared with.
        b: Folder of another study.
        c: Folder of a third study.
        out: HTML page to write; it opens offline.
        seed: Seed of the draws.
    """
    from rich.table import Table

    from analysis.comparing import comparison as studies
    from analysis.comparing.words import in_sentences
    from analysis.report.compare_page import write_comparison
    from analysis.report.sections.compare import pair_tables
    from tarflow.human import size
    from tarflow.storage import locate

    compared = studies.compare([locate(path) for path in (a, b, c) if path is not None], seed)
    print("\n".join(in_sentences(compared)))
    for pairs in pair_tables(compared):
        shown = Table(*pairs.columns)
        for cells in pairs.rows:
            shown.add_row(*cells)
        _print(shown)
    page = locate(out)
    write_comparison(page, compared)
    print(f"Wrote {page}: {size(page.stat().st_size)}.")
    return 0


def shares(
    studies: tuple[Path, ...] = (),
    /,
    out: Path = Path("shares.html"),
) -> int:
    """Say what each technique is worth by itself: noise, shape, denoising, guidance.

    Reads finished ablation studies, such as those of the presets ablation-noise, ablation-denoise,
    ablation-guidance and starflow-split, and writes one page with one table and one figure: the
    best choice of each technique against doing without it, in bits per dimension and in KID, with
    intervals.
    Example: python -m analysis shares studies/ablation-noise studies/ablation-guidance

    Args:
        studies: Folders of the studies.
        out: HTML page to write; it opens offline.
    """
    from analysis.comparing import shares as techniques
    from analysis.report.shares_page import in_sentences, write_shares
    from tarflow.human import size
    from tarflow.storage import locate

    if not studies:
        raise UserError("name at least one folder of an ablation study")
    worth = techniques.shares([locate(study) for study in studies])
    print("\n".join(in_sentences(worth)))
    page = locate(out)
    write_shares(page, worth, list(map(str, studies)))
    print(f"Wrote {page}: {size(page.stat().st_size)}.")
    return 0


def _fit_table(law: Any, x: str) -> Any:
    from rich.table import Table

    from tarflow import human

    shown = Table("parameter", "value", "90% interval", "")
    shown.title = f"{law.name}: {law.formula}" + f", where C is {x}" * bool(x)
    shown.caption = f"{law.status}, {law.rows} rows, residual scale {human.percent(law.scale)}"
    for name, value in law.values.items():
        shown.add_row(
            name, human.number(value), human.interval(law.intervals[name]), law.reasons[name]
        )
    return shown


def _print(table: Any) -> None:
    from rich.console import Console

    Console(markup=False, emoji=False).print(table)


COMMANDS: dict[str, Callable[..., int]] = {
    "report": report,
    "best": best,
    "fit": fit,
    "next": next_runs,
    "compare": compare,
    "shares": shares,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; a user's mistake is one line and exit code 2."""
    words = sys.argv[1:] if arguments is None else arguments
    about = "Fit the scaling laws of a study, report them, plan the next run."
    return exit_code_of(lambda: run_command(COMMANDS, words, "python -m analysis", about))


if __name__ == "__main__":
    sys.exit(main())
