"""The sections of an ablation: what it compares, side by side, with the samples."""

from collections.abc import Callable, Iterator

import pandas as pd
import plotly.graph_objects as go

from analysis import ablation
from analysis.ablation import averaged, noise_level, titled
from analysis.human import bits, interval, number
from analysis.report.checklist import Table
from analysis.report.figures import ablation as plots_ablation
from analysis.report.section import Block, Material, Picture, embedded, some
from analysis.settings import SETTING, setting_in_words
from analysis.study import pictures_of

MOST_PICTURES = 24
SCORES = {"kid": "KID", "fid": "FID", "fd": "FD"}
ENDS = {0.0: "not denoised", 1.0: "denoised"}
KEYS = ["title", "noise_type", "noise_std", "blocks", "layers"]  # of a choice


def sections(material: Material) -> list[Block]:
    """Return the sections of an ablation; none if the study is not one."""
    runs = titled(material.findings.finished)
    if runs.empty:
        return []
    kind = ablation.kind(runs)
    drawn = material.scored.merge(runs[["run_id", "choice", "title"]], on="run_id")
    drawn = drawn[drawn["half"] == "all"]
    made = [_choices(material, runs, drawn, kind)] if kind else []
    if drawn.loc[drawn["guidance"] == 0, "denoise"].nunique() > 2:
        made.append(_denoising(material, drawn))
    if (drawn["guidance"] > 0).any():
        made.append(_guidance(material, drawn))
    return made


def _choices(material: Material, runs: pd.DataFrame, drawn: pd.DataFrame, kind: str) -> Block:
    """Compare what was trained, by likelihood and by samples."""
    likelihood = _in_order(averaged(runs, KEYS, "bpd"), kind)
    plain = drawn[drawn["guidance"] == 0]
    if plain["denoise"].nunique() > len(ENDS):  # the section on denoising shows them all
        plain = plain[plain["denoise"].isin(ENDS)]
    figures = {"likelihood": _drawn(likelihood.assign(series=""), kind, "bits per dimension")}
    tables = [_table(likelihood, "bits per dimension", bits)]
    for column, name in _scores(plain):
        points = averaged(plain, [*KEYS, "denoise"], column)
        points = _in_order(points, kind)
        points = points.assign(series=[_denoised(row) for _, row in points.iterrows()])
        if kind != "noise":
            points = points[points["denoise"] == plain["denoise"].mode()[0]]
        figures[column] = _drawn(points, kind, name)
        gaussian = points["noise_type"] == "gaussian"
        named = (points["title"] + ", " + points["series"]).where(gaussian, points["title"])
        shown = points.assign(title=named)
        tables.append(_table(shown, name, number))
    heading, aid = {
        "noise": (
            "Noise level: likelihood and samples",
            "Every run costs the same; they differ in the noise added in training. Bits per "
            "dimension are of the clean image, so they compare; for Gaussian noise they are an "
            "upper bound.",
        ),
        "shape": (
            "Blocks against layers at equal cost",
            "Every run costs the same and has as many layers in all. One block alone sees each "
            "image in one order only.",
        ),
    }.get(kind, ("What is compared", "Every run costs the same."))
    return Block(
        kind,
        heading,
        f"{aid} Marks are means over seeds with their 90% intervals.",
        some(**figures),
        tables=tuple(tables),
        pictures=tuple(_pictures(material, plain, lambda row: str(row["title"]))),
    )


def _denoising(material: Material, drawn: pd.DataFrame) -> Block:
    """Compare multipliers of the denoising step."""
    drawn = drawn[(drawn["guidance"] == 0) & (drawn["noise_type"] == "gaussian")]
    drawn = drawn.assign(series=drawn["title"])
    keys = ["series", "denoise"]
    figures = {
        column: plots_ablation.against_number(
            averaged(drawn, keys, column),
            "denoise",
            "multiplier of the denoising step",
            name,
        )
        for column, name in _scores(drawn)
    }
    return Block(
        "denoising",
        "Denoising: samples against its multiplier",
        "The same models and the same noise, denoised more or less; 1 is what the score asks for. "
        "Marks are means over seeds with their 90% intervals.",
        some(**figures),
        pictures=tuple(_pictures(material, drawn, lambda row: str(row["title"]))),
    )


def _guidance(material: Material, drawn: pd.DataFrame) -> Block:
    """Compare ways to guide, one figure for each trained choice."""
    figures: dict[str, go.Figure | None] = {}
    tables = []
    for choice, rows in drawn.groupby("title", sort=False):
        guided = rows[rows["guidance"] > 0]
        if guided.empty:
            continue
        guided = guided.assign(series=ablation.ways(guided))
        without = rows[(rows["guidance"] == 0) & rows["denoise"].isin(guided["denoise"])]
        both = [guided, *(without.assign(series=way) for way in guided["series"].unique())]
        for column, name in _scores(guided):
            points = averaged(pd.concat(both), ["series", "guidance"], column)
            figures[f"{column} {choice}"] = plots_ablation.against_number(
                points, "guidance", f"guidance weight ({choice})", name
            )
            lowest = points.sort_values("mean").drop_duplicates("series")
            lowest = lowest.assign(
                title=[
                    f"{row['series']}, weight {row['guidance']:g}" for _, row in lowest.iterrows()
                ]
            )
            tables.append(_table(lowest, f"{name}, best weight of each way, {choice}", number))
    return Block(
        "guidance",
        "Guidance: samples against its weight",
        "The same models and the same noise, guided more or less, in several ways; weight 0 is "
        "not guided. Marks are means over seeds with their 90% intervals; the differences between "
        "ways are sharper than these, for all sample the same models.",
        {name: shown for name, shown in figures.items() if shown is not None},
        tables=tuple(tables),
        pictures=tuple(
            _pictures(material, drawn, lambda row: f"{row['title']}, {setting_in_words(row)}")
        ),
    )


def _in_order(points: pd.DataFrame, kind: str) -> pd.DataFrame:
    order = ablation.KINDS.get(kind, ["title"])
    return points.sort_values([*order, *points.columns.intersection(["denoise"])])


def _drawn(points: pd.DataFrame, kind: str, y: str) -> go.Figure:
    if kind == "noise":
        return plots_ablation.against_noise(points, y)
    if kind == "shape":
        named = points["blocks"].astype(str) + " × " + points["layers"].astype(str)
        return plots_ablation.side_by_side(points.assign(named=named), "blocks × layers", y)
    return plots_ablation.side_by_side(points.assign(named=points["title"]), "", y)


def _scores(drawn: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield the quality columns that hold something, and their names with the extractor."""
    for column, name in SCORES.items():
        known = drawn.dropna(subset=[column])
        if len(known):
            yield column, f"{name} ({known['feature_extractor'].iloc[0]})"


def _denoised(row: pd.Series) -> str:
    """Say how much of the noise was taken away; uniform noise cannot be."""
    if row["noise_type"] != "gaussian":
        return ENDS[1.0]
    return ENDS.get(row["denoise"], f"denoised × {row['denoise']:g}")


def _table(points: pd.DataFrame, name: str, written: Callable[[float | None], str]) -> Table:
    rows = [
        (row["title"], written(row["mean"]), interval((row["low"], row["high"]), written))
        for _, row in points.iterrows()
    ]
    return Table(("choice", name, "90% interval"), tuple(rows))


def _pictures(
    material: Material, drawn: pd.DataFrame, named: Callable[[pd.Series], str]
) -> Iterator[Picture]:
    """Yield the samples of one seed of each choice and setting, all from the same noise."""
    files = pictures_of(material.study)
    first = drawn[drawn["seed"] == drawn["seed"].min()]
    first = first.drop_duplicates(["title", *SETTING])
    first = first.assign(level=noise_level(first)).sort_values(
        ["level", "blocks", "guidance", "denoise"], kind="stable"
    )
    for _, row in first.iloc[:: -(-len(first) // MOST_PICTURES) or 1].iterrows():
        path = files.get((row["run_id"], *(row[name] for name in SETTING)))
        if path:
            note = f"{bits(row['bpd'])} BPD · KID {number(row['kid'])}"
            if row["noise_type"] == "gaussian":
                note = f"{_denoised(row)} · {note}"
            yield embedded(path, named(row), note)
