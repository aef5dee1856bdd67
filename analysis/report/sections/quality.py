"""The sections of sample quality: against likelihood, against published numbers, in a search."""

import shlex
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.comparing.differences import as_low, told_apart
from analysis.report import checklist
from analysis.report.figures import quality as quality_figures
from analysis.report.figures import quality_laws as law_figures
from analysis.report.figures import search as search_figures
from analysis.report.figures.theme import stride
from analysis.report.published import published
from analysis.report.section import Material, Picture, Section, Table, embedded, existing
from analysis.study.candidates import candidates, importance
from analysis.study.folder import sample_pictures, tables_of_runs
from analysis.study.quality_laws import in_words, quality_laws
from analysis.study.settings import (
    best_setting,
    of_inner_search,
    one_setting,
    pareto_front,
    run_and_setting,
    setting_in_words,
)
from analysis.study.signatures import GOOD, POOR, Signature, signatures
from tarflow.human import bits, bpd_name, interval, number

COMPARED = 500  # runs among which failure signatures are sought
MOST = 3  # runs shown of either failure signature


def quality(material: Material) -> Section:
    """Show sample quality beside likelihood."""
    compared = material.scored["run_id"].isin(material.findings.compared["run_id"])
    runs = one_setting(material.scored[compared])
    aid = "Sample quality (lower is better) against likelihood, one mark per run with its "
    aid += "standard error over images."
    if len(runs):
        first = runs.iloc[0]
        aid += f" All runs at {setting_in_words(first)}; {first['n']:.0f} samples "
        aid += f"against {first['n_reference']:.0f} images of {first['reference']}."
        aid += _differences(runs) + _distance_of_real_images(runs, material.reference)
    correlation = material.findings.correlation
    if correlation:
        aid += f" Rank correlation over {correlation.runs} runs, with 95% intervals: Spearman "
        aid += f"{number(correlation.spearman)} ({interval(correlation.spearman_interval)}), "
        aid += f"Kendall {number(correlation.kendall)} ({interval(correlation.kendall_interval)})."
    return Section(
        "quality",
        "Sample quality against likelihood",
        aid,
        existing(quality=quality_figures.quality(runs, material.reference)),
        empty="No run has sample scores yet.",
    )


def parting(material: Material) -> list[Section]:
    """Show the laws of KID, and where quality and likelihood part; none with too few runs."""
    laws = quality_laws(material.findings.runs, material.scored, material.seed)
    if not laws:
        return []
    trusted = any(plan.quality for plan in material.plans)
    return [
        Section(
            "parting",
            "Where quality and likelihood part",
            f"KID against {material.findings.bits_unit} and, at the size of lowest bits, against "
            "compute. Marks are runs with their standard errors, bands are 90% intervals of the "
            "laws, fitted to KID as it is: it may be negative by chance. A law of KID over size "
            "and data "
            + ("holds" if trusted else "does not hold")
            + " on runs it had not seen"
            + (", so plans show it." if trusted else ", so plans show none."),
            existing(
                likelihood=law_figures.against_likelihood(laws),
                compute=law_figures.against_compute(laws),
            ),
            points=tuple(line for law in laws for line in in_words(law)),
        )
    ]


def _differences(runs: pd.DataFrame) -> str:
    """Say which runs KID tells apart."""
    if len(runs) < 2:
        return ""
    if not told_apart(runs):
        return " KID does not tell these runs apart: they differ no more than by their errors."
    best = runs.sort_values("kid").iloc[0]
    near = len(as_low(runs, best))
    return (
        f" Lowest KID: {best['name']}; {near or 'no'} other run{'s' * (near != 1)} may be as low."
    )


def _distance_of_real_images(runs: pd.DataFrame, reference: Mapping[str, Any]) -> str:
    """Say how far real images are from others, the distance of perfect samples."""
    if reference.get("feature_extractor") != runs["feature_extractor"].iloc[0]:
        return ""
    return (
        f" Real training images are at {number(reference['kid'])} ± {number(reference['kid_se'])},"
        f" the runs at {number(runs['kid'].min())} to {number(runs['kid'].max())}."
    )


def disagreement(material: Material) -> Section:
    """Show the runs that rank high in likelihood and low in samples, and the reverse."""
    scored = one_setting(material.scored)
    runs = scored.iloc[:: stride(len(scored), COMPARED)]
    images = tables_of_runs(material.study, runs, "images.parquet")
    noise = material.findings.noise
    every = signatures(runs, images, noise.std if noise else 0.0, material.seed)
    every = every if told_apart(runs) else ()
    shown = [item for kind in (GOOD, POOR) for item in [s for s in every if s.kind == kind][:MOST]]
    aid = f"Of {len(runs):,} runs sampled alike"
    aid += f" (one in {stride(len(scored), COMPARED)} of all)" if len(runs) < len(scored) else ""
    aid += f", {len(every) or 'none'} "
    aid += "has" if len(every) == 1 else "have"
    name = material.findings.bpd_name
    aid += f" a rank by {name} and a rank by KID whose 90% intervals do not overlap."
    if shown:
        aid += f" Their samples are shown beside those of the runs of lowest {name} and lowest "
        aid += "KID. Ranks compare the runs with each other, not with real images."
    elif len(runs) > 1 and not told_apart(runs):
        aid += " KID does not tell the runs apart."
    rows = {str(row["run_id"]): row for _, row in runs.iterrows()}
    lowest = {"bpd": f"lowest {name}", "kid": "lowest KID"} if shown else {}
    best = {str(runs.sort_values(by)["run_id"].iloc[0]): title for by, title in lowest.items()}
    return Section(
        "signatures",
        "Failure signatures: likelihood and samples disagree",
        aid,
        {},
        tables=(_signature_table(shown, rows, name),) if shown else (),
        pictures=_signature_pictures(material.study, shown, best, rows),
    )


def _signature_table(shown: list[Signature], rows: dict[str, pd.Series], bpd: str) -> Table:
    return Table(
        ("run", "signature", bpd, f"rank by {bpd}", "KID", "rank by KID"),
        tuple(
            (
                str(rows[item.run_id]["name"]),
                item.kind,
                bits(rows[item.run_id]["bpd"]),
                f"{item.bpd_rank:g} ({interval(item.bpd_ranks)})",
                number(rows[item.run_id]["kid"]),
                f"{item.kid_rank:g} ({interval(item.kid_ranks)})",
            )
            for item in shown
        ),
    )


def _signature_pictures(
    study: Path, shown: list[Signature], best: dict[str, str], rows: dict[str, pd.Series]
) -> tuple[Picture, ...]:
    """Return the samples of these runs, then of the lowest runs by either score."""
    titles = {item.run_id: item.kind for item in shown}
    chosen: dict[str, str] = titles | best | titles
    files, pictures = sample_pictures(study, chosen), []
    for run_id, title in chosen.items():
        row = rows[run_id]
        path = files.get(run_and_setting(row))
        if path:
            note = f"{row['name']} · {bits(row['bpd'])} {bpd_name(str(row.get('bpd_kind')))}"
            note += f" · KID {number(row['kid'])}"
            pictures.append(embedded(path, title, note, run_id))
    return tuple(pictures)


def others(material: Material) -> list[Section]:
    """Show published numbers on the same data; no section if there are none."""
    tables = published(material.scored, material.findings.finished)
    if not tables:
        return []
    return [
        Section(
            "published",
            "Published numbers on the same data",
            "The best of this study among what others have reported. Read the protocols: numbers "
            "from other image counts, or from tuned guidance, are only roughly comparable.",
            {},
            tables=tables,
        )
    ]


def _stopped_early(tried: pd.DataFrame) -> str:
    """Say how many candidates were stopped, and when; empty if none was."""
    stopped = tried.loc[tried["status"] == "pruned", "share"]
    if stopped.empty:
        return ""
    counts = Counter(Fraction(round(4 * share), 4) for share in stopped)
    words = " and ".join(f"{count} at {share}" for share, count in sorted(counts.items()))
    return (
        f" Of {len(tried)} candidates, {len(stopped)} were stopped early, {words} of their "
        "budget: no front and no line of the hyperparameters has them."
    )


def search(material: Material) -> Section:
    """Show the results of a search."""
    scored = material.scored
    searched = scored[scored["role"] == "search"]
    front = pareto_front(best_setting(searched))
    tried = candidates(material.table)
    return Section(
        "search",
        "Search",
        "Training choices are judged by likelihood and, at their best sampler setting, by sample "
        "quality. The front holds the runs that no other run beats in both, decided on one half "
        "of the draws; marks are at the KID of the other half. The sampler surface needs no "
        "training; larger marks are denoised more. Importances are shares of the order of all "
        "candidates, those that were stopped early behind the finished ones, that a curve in one "
        "hyperparameter explains; they miss what only two together decide." + _stopped_early(tried)
        if len(searched)
        else "Depth, channels, noise and learning rate are tuned at small size; guidance, "
        "temperature and denoising only sample from trained models.",
        existing(
            trade_off=quality_figures.trade_off(searched),
            sampler=quality_figures.sampler_surface(of_inner_search(scored)),
            hyperparameters=quality_figures.parallel_coordinates(searched),
            importances=search_figures.importances(importance(tried, material.seed)),
            slices=search_figures.slices(tried),
        ),
        tables=(checklist.front(front),) if len(front) else (),
        empty="This study has no search yet. This command runs one:",
        command=""
        if len(searched)
        else f"python sweeps/search.py {shlex.quote(material.study.name)} "
        f"--out {shlex.quote(material.place)}",
    )
