"""The sections of the runs themselves: loss curves, single images, cost, checklist."""

from analysis.report import checklist
from analysis.report.figures import runs as run_figures
from analysis.report.section import Material, Section, existing
from analysis.study import tables_of_runs


def curves(material: Material) -> Section:
    """Show the training loss of all runs."""
    runs, curves = material.findings.finished, material.curves
    return Section(
        "curves",
        "Loss curves",
        "Training loss of all runs, in nats per dimension without the Gaussian constant. Runs at "
        "different noise levels are on different scales.",
        existing(
            FLOPs=run_figures.loss_curves(runs, curves, "flops"),
            images=run_figures.loss_curves(runs, curves, "images"),
        ),
        tabs=True,
        empty="No run has written a loss curve yet.",
    )


def images(material: Material) -> Section:
    """Show bits per dimension of single images."""
    runs = material.findings.finished
    best = material.findings.frontier_points["run_id"].tolist()
    frontier = runs[runs["run_id"].isin(best)].sort_values("flops")
    images = tables_of_runs(material.study, frontier, "images.parquet")
    return Section(
        "images",
        "Bits per dimension of single images",
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
        "What it cost",
        "FLOPs are counted by formula; times are those of the runs themselves. The table adds up "
        "what was spent."
        + checklist.saving(material.table)
        + checklist.overhead(material.outcome),
        existing(cost=run_figures.cost(material.findings.finished)),
        tables=(checklist.cost(material.table),),
        empty="No run has finished yet.",
    )


def reproducibility(material: Material) -> Section:
    """Answer the questions of a reviewer."""
    return Section(
        "checklist",
        "Reproducibility",
        "What you need to know to judge or repeat this study.",
        {},
        tables=(checklist.reproducibility(material.findings, material.table, material.seed),),
    )
