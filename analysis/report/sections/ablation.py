"""The sections of an ablation: its choices side by side, with samples."""

from collections.abc import Callable, Iterator

import pandas as pd
import plotly.graph_objects as go

from analysis.comparing import ablation
from analysis.comparing.ablation import averaged, noise_level, split_of, splits, titled
from analysis.comparing.differences import signed_difference
from analysis.report.figures import ablation as ablation_figures
from analysis.report.figures.theme import SOFT
from analysis.report.section import Material, Picture, Section, Table, embedded
from analysis.study.folder import sample_pictures
from analysis.study.names import bits_unit_of
from analysis.study.settings import SETTING, run_and_setting, setting_in_words
from tarflow.human import bits, bpd_name, interval, number

MOST_PICTURES = 24  # per section
SCORES = {"kid": "KID", "fid": "FID", "fd": "FD"}
DENOISED = {0.0: "not denoised", 1.0: "denoised"}
# columns that name a choice
KEYS = ["title", "noise_type", "noise_std", "blocks", "deepest", "layer_split", "patch"]


def sections(material: Material) -> list[Section]:
    """Return the sections of an ablation; none if the study is not one."""
    runs = titled(material.findings.finished)
    if runs.empty:
        return []
    kind = ablation.kind(runs)
    named = runs[["run_id", "choice", "title", "deepest", "layer_split"]]
    scored = material.scored.drop(columns="layer_split", errors="ignore")
    sampled = scored.merge(named, on="run_id")
    sampled = sampled[sampled["half"] == "all"]
    shown = [_choices(material, runs, sampled, kind)] if kind else []
    if sampled.loc[sampled["guidance"] == 0, "denoise"].nunique() > 2:
        shown.append(_denoising(material, sampled))
    if (sampled["guidance"] > 0).any():
        shown.append(_guidance(material, sampled))
    return shown


def _choices(material: Material, runs: pd.DataFrame, sampled: pd.DataFrame, kind: str) -> Section:
    """Compare what was trained, by likelihood and by samples."""
    plain = sampled[sampled["guidance"] == 0]
    if plain["denoise"].nunique() > len(DENOISED):  # the denoising section shows all
        plain = plain[plain["denoise"].isin(DENOISED)]
    figures: dict[str, go.Figure] = {}
    tables: list[Table] = []
    unit, comparable = bits_unit_of(runs), ablation.likelihoods_compare(runs)
    if comparable:
        likelihood = _in_order(averaged(runs, KEYS, "bpd"), kind)
        figures["likelihood"] = _figure(likelihood.assign(series=""), kind, unit)
        tables.append(_table(likelihood, unit, bits))
    for column, name in _scores(plain):
        points = _in_order(averaged(plain, [*KEYS, "denoise"], column), kind)
        points = points.assign(series=[_denoised(row) for _, row in points.iterrows()])
        if kind != "noise":
            points = points[points["denoise"] == plain["denoise"].mode()[0]]
        figures[column] = _figure(points, kind, name)
        gaussian = points["noise_type"] == "gaussian"
        titles = (points["title"] + ", " + points["series"]).where(gaussian, points["title"])
        tables.append(_table(points.assign(title=titles), name, number))
    first = ablation.baseline(runs)
    worth = ablation.worth(runs, material.study)
    aid_of_worth = ""
    if len(worth) and comparable:
        title = f"{unit}, minus those of {first}"
        shown = _figure(worth.assign(series=""), kind, title).update_layout(showlegend=False)
        figures["against " + first] = shown.add_hline(y=0, line={"color": SOFT, "width": 1})
        tables.insert(1, _table(worth, title, signed_difference))
        aid_of_worth = (
            " Differences from one choice are paired: runs of one seed are scored on the same "
            "images and noise draws, so what makes these hard cancels."
        )
    heading, aid = {
        "noise": (
            "Noise level: likelihood and samples",
            "Every run has the same cost; they differ in the noise added in training. "
            + (
                "Bits per dimension are those of the clean image, so they can be compared; for "
                "Gaussian noise they are an upper bound."
                if comparable
                else "Likelihoods of latents are those of the noisy latent, so they cannot be "
                "compared between noise levels."
            ),
        ),
        "shape": (
            "Layers of each block at equal cost"
            if splits(runs)
            else "Blocks against layers at equal cost",
            "Every run has the same cost and the same total number of layers."
            + (
                " Layers count from the block nearest the images to the one nearest the noise."
                if splits(runs)
                else " A single block reads the pixels in one order only."
            ),
        ),
        "patch": (
            "Patch sizes at equal cost",
            "Every run has the same cost: with larger patches an image has fewer tokens, so more "
            "images are seen.",
        ),
    }.get(kind, ("What is compared", "Every run has the same cost."))
    return Section(
        kind,
        heading,
        f"{aid} Marks are means over seeds with 90% intervals.{aid_of_worth}",
        figures,
        tables=tuple(tables),
        pictures=tuple(_pictures(material, plain, lambda row: str(row["title"]))),
    )


def _denoising(material: Material, sampled: pd.DataFrame) -> Section:
    """Compare multipliers of the denoising step."""
    sampled = sampled[(sampled["guidance"] == 0) & (sampled["noise_type"] == "gaussian")]
    sampled = sampled.assign(series=sampled["title"])
    figures = {
        column: ablation_figures.against_number(
            averaged(sampled, ["series", "denoise"], column),
            "denoise",
            "multiplier of the denoising step",
            name,
        )
        for column, name in _scores(sampled)
    }
    return Section(
        "denoising",
        "Denoising: samples against its multiplier",
        "The same models and the same noise, denoised more or less; 1 is the full step along the "
        "score. Marks are means over seeds with 90% intervals.",
        figures,
        pictures=tuple(_pictures(material, sampled, lambda row: str(row["title"]))),
    )


def _guidance(material: Material, sampled: pd.DataFrame) -> Section:
    """Compare ways to guide, one figure for each trained choice."""
    figures: dict[str, go.Figure] = {}
    tables = []
    for choice, rows in sampled.groupby("title", sort=False):
        guided = rows[rows["guidance"] > 0]
        if guided.empty:
            continue
        guided = guided.assign(series=ablation.ways(guided))
        without = rows[(rows["guidance"] == 0) & rows["denoise"].isin(guided["denoise"])]
        both = [guided, *(without.assign(series=way) for way in guided["series"].unique())]
        for column, name in _scores(guided):
            points = averaged(pd.concat(both), ["series", "guidance"], column)
            figures[f"{column} {choice}"] = ablation_figures.against_number(
                points, "guidance", f"guidance weight ({choice})", name
            )
            lowest = points.sort_values("mean").drop_duplicates("series")
            weights = lowest["guidance"].map("{:g}".format)
            lowest = lowest.assign(title=lowest["series"] + ", weight " + weights)
            tables.append(_table(lowest, f"{name}, best weight of each way, {choice}", number))
    return Section(
        "guidance",
        "Guidance: samples against its weight",
        "The same models and the same noise, guided more or less in several ways; weight 0 is no "
        "guidance. Marks are means over seeds with 90% intervals; differences between ways are "
        "known more precisely than these show, because all ways sample the same models.",
        figures,
        tables=tuple(tables),
        pictures=tuple(
            _pictures(material, sampled, lambda row: f"{row['title']}, {setting_in_words(row)}")
        ),
    )


def _in_order(points: pd.DataFrame, kind: str) -> pd.DataFrame:
    order = ablation.KINDS.get(kind, ["title"])
    return points.sort_values([*order, *points.columns.intersection(["denoise"])])


def _figure(points: pd.DataFrame, kind: str, y: str) -> go.Figure:
    if kind == "noise":
        return ablation_figures.against_noise(points, y)
    if kind == "shape":
        if splits(points):
            points = points.assign(named=[split_of(row) for _, row in points.iterrows()])
            title = "layers of each block, from the images to the noise"
            return ablation_figures.side_by_side(points, title, y)
        named = points["blocks"].astype(str) + " × " + points["deepest"].astype(str)
        return ablation_figures.side_by_side(points.assign(named=named), "blocks × layers", y)
    return ablation_figures.side_by_side(points.assign(named=points["title"]), "", y)


def _scores(sampled: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield the quality columns that have values, and their names with the extractor."""
    for column, name in SCORES.items():
        known = sampled.dropna(subset=[column])
        if len(known):
            yield column, f"{name} ({known['feature_extractor'].iloc[0]})"


def _denoised(row: pd.Series) -> str:
    """Say how much of the noise was removed; uniform noise cannot be."""
    if row["noise_type"] != "gaussian":
        return DENOISED[1.0]
    return DENOISED.get(row["denoise"], f"denoised × {row['denoise']:g}")


def _table(points: pd.DataFrame, name: str, write: Callable[[float], str]) -> Table:
    rows = [
        (row["title"], write(row["mean"]), interval((row["low"], row["high"]), write))
        for _, row in points.iterrows()
    ]
    return Table(("choice", name, "90% interval"), tuple(rows))


def _pictures(
    material: Material, sampled: pd.DataFrame, name: Callable[[pd.Series], str]
) -> Iterator[Picture]:
    """Yield samples of one seed of each choice and setting, all from the same noise."""
    files = sample_pictures(material.study, sampled["run_id"].unique())
    first = sampled[sampled["seed"] == sampled["seed"].min()]
    first = first.drop_duplicates(["title", *SETTING])
    first = first.assign(level=noise_level(first)).sort_values(
        ["level", "blocks", "deepest", "layer_split", "guidance", "denoise"], kind="stable"
    )
    for _, row in first.iloc[:: -(-len(first) // MOST_PICTURES) or 1].iterrows():
        path = files.get(run_and_setting(row))
        if path:
            score = bpd_name(str(row.get("bpd_kind")))
            note = f"{bits(row['bpd'])} {score} · KID {number(row['kid'])}"
            if row["noise_type"] == "gaussian":
                note = f"{_denoised(row)} · {note}"
            yield embedded(path, name(row), note, row["run_id"])
