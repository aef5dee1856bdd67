"""The blocks of the report in reading order: a title, how to read it, figures and tables."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analysis import checklist, plots, plots_estimates, plots_law, plots_quality
from analysis.checklist import Table
from analysis.findings import Findings
from analysis.fit import LEVEL
from analysis.forecast import read_forecasts
from analysis.human import bits, count, interval, number, percent, power
from tarflow.record import read_table


@dataclass(frozen=True)
class Picture:
    """An embedded image with the words under it."""

    source: str  # data URI
    title: str
    note: str


@dataclass(frozen=True)
class Block:
    """One section of the page; a block without figures says what would fill it."""

    key: str  # anchor and file name
    title: str
    aid: str  # how to read it, one or two sentences
    figures: Mapping[str, go.Figure]  # by the name of the view
    columns: int = 2  # figures side by side where there is room
    tabs: bool = False  # one view at a time
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    empty: str = ""  # shown when there is nothing to draw
    command: str = ""  # that fills the block


@dataclass(frozen=True)
class Material:
    """What a study folder holds, read."""

    study: Path
    table: pd.DataFrame  # every run, failed ones too
    scored: pd.DataFrame  # runs joined to their sample scores, one row per sampler setting
    findings: Findings
    reference: Mapping[str, Any]  # kid, kid_se of real training images; may be empty
    outcome: Mapping[str, float]  # wall_seconds, device_seconds, cpus of the sweep; or empty
    seed: int


def blocks(material: Material) -> list[Block]:
    """Return every block of the page."""
    makers: tuple[Callable[[Material], Block], ...] = (
        _law,
        _curves,
        _isoflop,
        _residuals,
        _exponents,
        _allocation,
        _validation,
        _final,
        _quality,
        _samples,
        _images,
        _search,
        _cost,
        _reproducibility,
    )
    return [make(material) for make in makers]


def _some(**figures: go.Figure | None) -> dict[str, go.Figure]:
    return {name.replace("_", " "): shown for name, shown in figures.items() if shown is not None}


def _law(material: Material) -> Block:
    found = material.findings
    aid = "Each point is a finished run, each line one model size."
    if found.frontier:
        aid += " The law is fitted to the ringed runs, the best of each budget."
    if plots_law.held_out_on_compute(found):
        aid += " The dotted law has not seen the largest budget; the diamond is its prediction "
        aid += f"there, with the {percent(LEVEL)} band."
    return Block(
        "law",
        "Loss against compute",
        aid,
        _some(law=plots_law.runs_against_flops(found)),
        empty="No run has finished yet.",
    )


def _curves(material: Material) -> Block:
    runs = material.findings.finished
    curves = _tables(material.study, runs, "curve.parquet")
    return Block(
        "curves",
        "Loss curves",
        "Training loss of all runs, in nats per dimension without the Gaussian constant. Runs at "
        "different noise levels are on different scales.",
        _some(
            FLOPs=plots.loss_curves(runs, curves, "flops"),
            images=plots.loss_curves(runs, curves, "images"),
        ),
        tabs=True,
        empty="No run has left a loss curve yet.",
    )


def _isoflop(material: Material) -> Block:
    return Block(
        "isoflop",
        "IsoFLOP: the best size of each budget",
        "Runs of one budget share a colour. The diamond is the minimum of the parabola with its "
        "90% interval; an open diamond says that the best size lies beyond those tried. Where "
        "the dotted surface leaves the parabola, one of the two is wrong.",
        _some(isoflop=plots_law.isoflop(material.findings)),
        empty="No budget has three sizes yet.",
    )


def _residuals(material: Material) -> Block:
    return Block(
        "residuals",
        "What the law leaves over",
        "Relative residuals of the surface law. A trend along an axis means that the form misses "
        "something there; a lone point is worth a second look.",
        plots_law.residuals(material.findings),
        columns=3,
        tables=(checklist.influence(material.findings),) if material.findings.influence else (),
        empty="No surface law L(N, D) could be fitted: too few runs.",
    )


def _exponents(material: Material) -> Block:
    return Block(
        "exponents",
        "Exponents and floor, with intervals",
        "The same exponent across forms: believe it as far as the rows agree. Open grey marks are "
        "not identified by these runs, their value is arbitrary.",
        _some(
            exponents=plots_estimates.exponents(material.findings),
            floor=plots_estimates.floors(material.findings),
        ),
        empty="No law could be fitted: too few runs.",
    )


def _allocation(material: Material) -> Block:
    return Block(
        "allocation",
        "Compute-optimal size and data",
        "How a budget is best split between parameters N* and tokens D*. Diamonds are the IsoFLOP "
        "minima, which need no law. Where the law leaves the size open, the minima or the best "
        "run take its place.",
        plots_estimates.allocation(material.findings),
        tables=(checklist.sizes(material.findings),) if material.findings.allocation else (),
        empty="Nothing to recommend yet: too few runs.",
    )


def _validation(material: Material) -> Block:
    found = material.findings
    tables = (checklist.model_choice(found), checklist.coverage(found)) if found.rollouts else ()
    return Block(
        "validation",
        "Validation: errors on runs not seen",
        "Every form is fitted to cheaper runs only and predicts the dearer ones; each mark is one "
        "such prediction. A law is worth having if it stays below the grey lines, which need no "
        "law.",
        _some(validation=plots_estimates.validation(found)),
        tables=tables,
        empty="No roll-out was possible: too few runs.",
    )


def _final(material: Material) -> Block:
    forecasts = read_forecasts(material.study)
    return Block(
        "final",
        "The final run: predicted against achieved",
        "What the law said before the run was trained, and what came out, on the test split that "
        "nothing else reads.",
        {},
        tables=(checklist.final(forecasts),) if forecasts else (),
        empty="" if forecasts else "No final run yet. This command trains best.yaml:",
        command="" if forecasts else f"python sweeps/final.py {material.study}",
    )


def _quality(material: Material) -> Block:
    in_laws = material.scored["run_id"].isin(material.findings.runs["run_id"])
    one = plots_quality.one_setting(material.scored[in_laws])
    aid = "Sample quality (lower is better) against likelihood, one mark per run with its "
    aid += "standard error over images."
    if len(one):
        first = one.iloc[0]
        aid += f" All runs at {plots_quality.setting_in_words(first)}; {first['n']:.0f} samples "
        aid += f"against {first['n_reference']:.0f} images of {first['reference']}."
    found = material.findings.correlation
    if found:
        aid += f" Rank correlation: Spearman {number(found.spearman)} (95% interval "
        aid += f"{interval(found.spearman_interval)}), Kendall {number(found.kendall)} "
        aid += f"({interval(found.kendall_interval)}), {found.runs} runs."
    return Block(
        "quality",
        "Sample quality against likelihood",
        aid,
        _some(quality=plots_quality.quality(one, material.reference)),
        empty="No run has sample scores yet.",
    )


def _samples(material: Material) -> Block:
    pictures = []
    runs = material.findings.runs if len(material.findings.runs) else material.findings.finished
    best = runs.sort_values("bpd").drop_duplicates("params").sort_values("params")
    for _, run in best.iterrows():
        path = material.study / "runs" / run["run_id"] / "samples.png"
        if path.exists():
            data = base64.b64encode(path.read_bytes()).decode()
            pictures.append(
                Picture(
                    f"data:image/png;base64,{data}",
                    f"{count(run['params'])} params",
                    f"{bits(run['bpd'])} BPD · {power(run['flops'])} FLOPs · {run['run_id']}",
                )
            )
    return Block(
        "samples",
        "Samples of each size",
        "Drawn from the best run of every size, not picked.",
        {},
        pictures=tuple(pictures),
        empty="No run has left samples yet.",
    )


def _images(material: Material) -> Block:
    runs = material.findings.finished
    best = material.findings.frontier_points["run_id"].tolist()
    frontier = runs[runs["run_id"].isin(best)].sort_values("flops")
    images = _tables(material.study, frontier, "images.parquet")
    return Block(
        "images",
        "Bits per dimension of single images",
        "The mean is what laws are fitted to; it is trusted only while no single image moves it. "
        "The distributions are those of the best run of each budget.",
        _some(
            over_runs=plots.per_image(runs),
            distribution=plots.image_distribution(frontier, images),
        ),
        empty="No run has per-image scores yet.",
    )


def _search(material: Material) -> Block:
    scored = material.scored
    found = scored[scored["role"] == "search"]
    front = plots_quality.pareto_front(plots_quality.best_setting(found))
    return Block(
        "search",
        "Search",
        "Training choices are judged by likelihood and, at their best sampler setting, by sample "
        "quality: the front holds the runs that nothing beats in both. The sampler surface needs "
        "no training; larger marks denoise more."
        if len(found)
        else "Depth, channels, noise and learning rate are tuned at small size; guidance, "
        "temperature and denoising only sample from what is trained.",
        _some(
            trade_off=plots_quality.trade_off(found),
            sampler=plots_quality.sampler_surface(found),
            hyperparameters=plots_quality.parallel_coordinates(found),
        ),
        tables=(checklist.front(front),) if len(front) else (),
        empty="This study holds no search yet. This command fills the block:",
        command=f"python sweeps/search.py {material.study.name} --out {material.study}",
    )


def _cost(material: Material) -> Block:
    return Block(
        "cost",
        "What it cost",
        "FLOPs are counted by formula; times are those of the runs themselves."
        + checklist.overhead(material.outcome),
        _some(cost=plots.cost(material.findings.finished)),
        tables=(checklist.cost(material.table),),
        empty="No run has finished yet.",
    )


def _reproducibility(material: Material) -> Block:
    return Block(
        "checklist",
        "Reproducibility",
        "What one needs to know to judge or repeat this study.",
        {},
        tables=(checklist.reproducibility(material.findings, material.table, material.seed),),
    )


def _tables(study: Path, runs: pd.DataFrame, name: str) -> dict[str, pd.DataFrame]:
    found = {}
    for run_id in runs["run_id"]:
        path = study / "runs" / run_id / name
        if path.exists():
            found[run_id] = read_table(path).to_pandas()
    return found
