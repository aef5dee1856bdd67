"""The sections of the runs themselves: loss curves, single images, cost, checklist."""

from analysis.report import checklist, spending
from analysis.report.figures import runs as run_figures
from analysis.report.figures.theme import note_thinning
from analysis.report.run_data import TABLE_ROWS
from analysis.report.section import Material, Picture, Section, embedded, existing
from analysis.study.folder import sample_pictures, tables_of_runs
from analysis.study.settings import best_setting, run_and_setting, setting_in_words
from tarflow.human import bits, number


def curves(material: Material) -> Section:
    """Show the training loss of all runs."""
    runs, drawn = material.findings.finished, material.with_curve
    figures = existing(
        FLOPs=run_figures.loss_curves(drawn, material.curves, "flops"),
        images=run_figures.loss_curves(drawn, material.curves, "images"),
    )
    for shown in figures.values():
        note_thinning(shown, len(drawn), len(runs))
    return Section(
        "curves",
        "Loss curves",
        "Training loss of the runs, in nats per dimension without the Gaussian constant. Runs at "
        "different noise levels are on different scales.",
        figures,
        tabs=True,
        empty="No run has written a loss curve yet.",
    )


def best_samples(material: Material) -> Picture | None:
    """Return the samples of lowest KID, each run drawn at its best setting."""
    best = best_setting(material.scored).sort_values("kid")
    for _, run in best.iterrows():
        path = sample_pictures(material.study, [run["run_id"]]).get(run_and_setting(run))
        if path:
            note = f"{setting_in_words(run)} · KID {number(run['kid'])} · {bits(run['bpd'])} bits"
            return embedded(path, run["name"], note, run["run_id"])
    return None


def table(material: Material) -> Section:
    """Show every run, or those of the most compute."""
    total = len(material.table)
    shown = "Failed ones too."
    if total > TABLE_ROWS:
        shown = f"The {TABLE_ROWS:,} runs of the most compute, of {total:,}; the CSV has all."
    return Section(
        "runs",
        "All runs",
        f"{shown} Click a heading to sort, and a run to see it in every figure. Filters also fade "
        "the other runs in the figures. The note says why no law uses a run.",
        {},
        partial="runs.html.j2",
    )


def images(material: Material) -> Section:
    """Show the likelihood of single images."""
    runs = material.findings.finished
    best = material.findings.frontier_points["run_id"].tolist()
    frontier = runs[runs["run_id"].isin(best)].sort_values("flops")
    images = tables_of_runs(material.study, frontier, "images.parquet")
    return Section(
        "images",
        f"{material.findings.bits_unit.capitalize()} of single images",
        "Laws are fitted to the mean, which can be trusted only while no single image moves it. "
        "The distributions are those of the best run of each budget.",
        existing(
            over_runs=run_figures.per_image(runs),
            distribution=run_figures.image_distribution(frontier, images),
        ),
        empty="No run has per-image scores yet.",
    )


def cost(material: Material) -> Section:
    """Show what the runs cost."""
    return Section(
        "cost",
        "Time and FLOPs by kind of run",
        "FLOPs are counted by formula; times are those of the runs themselves. The table adds up "
        "what was spent."
        + spending.saving(material.table)
        + spending.overhead(material.outcome)
        + spending.interruptions(material.table, material.outcome)
        + spending.missing_runs(material.outcome),
        existing(cost=run_figures.cost(material.findings.finished)),
        tables=(spending.cost(material.table), *spending.expected_and_spent(material.outcome)),
        empty="No run has finished yet.",
    )


def reproducibility(material: Material) -> Section:
    """Answer the questions of a reviewer."""
    return Section(
        "checklist",
        "Everything a reviewer asks",
        "What you need to know to judge or repeat this study.",
        {},
        tables=(checklist.reproducibility(material.findings, material.table, material.seed),),
    )
