"""The sections of the runs themselves: curves, quality, samples, search and cost."""

from analysis import settings
from analysis.human import bits, count, interval, number, power
from analysis.report import checklist
from analysis.report.checklist import Table
from analysis.report.figures import quality as plots_quality
from analysis.report.figures import runs as plots
from analysis.report.published import published
from analysis.report.section import Block, Material, embedded, some
from analysis.settings import SETTING
from analysis.signatures import GOOD, POOR, signatures
from analysis.study import pictures_of, tables_of

EACH = 3  # runs of either failure signature that are shown
BEST = (("bpd", "likelihood"), ("kid", "samples"))


def curves(material: Material) -> Block:
    """Show the training loss of all runs."""
    runs = material.findings.finished
    curves = tables_of(material.study, runs, "curve.parquet")
    return Block(
        "curves",
        "Loss curves",
        "Training loss of all runs, in nats per dimension without the Gaussian constant. Runs at "
        "different noise levels are on different scales.",
        some(
            FLOPs=plots.loss_curves(runs, curves, "flops"),
            images=plots.loss_curves(runs, curves, "images"),
        ),
        tabs=True,
        empty="No run has left a loss curve yet.",
    )


def quality(material: Material) -> Block:
    """Show sample quality beside likelihood."""
    compared = material.scored["run_id"].isin(material.findings.compared["run_id"])
    one = settings.one_setting(material.scored[compared])
    aid = "Sample quality (lower is better) against likelihood, one mark per run with its "
    aid += "standard error over images."
    if len(one):
        first = one.iloc[0]
        aid += f" All runs at {settings.setting_in_words(first)}; {first['n']:.0f} samples "
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
        some(quality=plots_quality.quality(one, material.reference)),
        empty="No run has sample scores yet.",
    )


def disagreement(material: Material) -> Block:
    """Show the runs that are good at likelihood and poor at samples, and the reverse."""
    one = settings.one_setting(material.scored)
    images = tables_of(material.study, one, "images.parquet")
    noise = material.findings.noise
    found = signatures(one, images, noise.std if noise else 0.0, material.seed)
    shown = [item for kind in (GOOD, POOR) for item in [s for s in found if s.kind == kind][:EACH]]
    rows = {str(row["run_id"]): row for _, row in one.iterrows()}
    aid = f"Of {len(one)} runs sampled alike, {len(found) or 'none'} "
    aid += "has" if len(found) == 1 else "have"
    aid += " a rank by BPD and a rank by KID whose 90% intervals do not meet."
    if shown:
        aid += " The samples of these stand beside those of the best runs by either score."
    lines = [
        (
            str(rows[item.run_id]["label"]),
            item.kind,
            bits(rows[item.run_id]["bpd"]),
            f"{item.bpd_rank:g} ({interval(item.bpd_ranks)})",
            number(rows[item.run_id]["kid"]),
            f"{item.kid_rank:g} ({interval(item.kid_ranks)})",
        )
        for item in shown
    ]
    ends = {str(one.sort_values(c)["run_id"].iloc[0]): f"best {n}" for c, n in BEST * bool(shown)}
    files, pictures = pictures_of(material.study), []
    titles = {item.run_id: item.kind for item in shown}
    for run_id, title in (titles | ends | titles).items():
        row = rows[run_id]
        path = files.get((run_id, *(row[name] for name in SETTING)))
        note = f"{row['label']} · {bits(row['bpd'])} BPD · KID {number(row['kid'])}"
        pictures += [embedded(path, title, note)] if path else []
    columns = ("run", "signature", "BPD", "rank by BPD", "KID", "rank by KID")
    return Block(
        "signatures",
        "Failure signatures: likelihood and samples disagree",
        aid,
        {},
        tables=(Table(columns, tuple(lines)),) if lines else (),
        pictures=tuple(pictures),
    )


def others(material: Material) -> list[Block]:
    """Show published numbers of the same data; nothing where there are none."""
    tables = published(material.scored, material.findings.finished)
    return [
        Block(
            "published",
            "Published numbers on the same data",
            "The best of this study among what others have reported. Read the protocols: numbers "
            "of other image counts, or of tuned guidance, compare only roughly.",
            {},
            tables=tables,
        )
    ] * bool(tables)


def samples(material: Material) -> Block:
    """Show samples of the best run of each size."""
    pictures = []
    runs = material.findings.runs if len(material.findings.runs) else material.findings.finished
    best = runs.sort_values("bpd").drop_duplicates("params").sort_values("params")
    for _, run in best.iterrows():
        path = material.study / "runs" / run["run_id"] / "samples.png"
        if path.exists():
            note = f"{bits(run['bpd'])} BPD · {power(run['flops'])} FLOPs · {run['run_id']}"
            pictures.append(embedded(path, f"{count(run['params'])} params", note))
    return Block(
        "samples",
        "Samples of each size",
        "Drawn from the best run of every size, not picked.",
        {},
        pictures=tuple(pictures),
        empty="No run has left samples yet.",
    )


def images(material: Material) -> Block:
    """Show bits per dimension of single images."""
    runs = material.findings.finished
    best = material.findings.frontier_points["run_id"].tolist()
    frontier = runs[runs["run_id"].isin(best)].sort_values("flops")
    images = tables_of(material.study, frontier, "images.parquet")
    return Block(
        "images",
        "Bits per dimension of single images",
        "The mean is what laws are fitted to; it is trusted only while no single image moves it. "
        "The distributions are those of the best run of each budget.",
        some(
            over_runs=plots.per_image(runs),
            distribution=plots.image_distribution(frontier, images),
        ),
        empty="No run has per-image scores yet.",
    )


def search(material: Material) -> Block:
    """Show what a search has found."""
    scored = material.scored
    found = scored[scored["role"] == "search"]
    front = settings.pareto_front(settings.best_setting(found))
    return Block(
        "search",
        "Search",
        "Training choices are judged by likelihood and, at their best sampler setting, by sample "
        "quality: the front holds the runs that nothing beats in both. The sampler surface needs "
        "no training; larger marks denoise more."
        if len(found)
        else "Depth, channels, noise and learning rate are tuned at small size; guidance, "
        "temperature and denoising only sample from what is trained.",
        some(
            trade_off=plots_quality.trade_off(found),
            sampler=plots_quality.sampler_surface(scored[scored["half"] != "all"]),
            hyperparameters=plots_quality.parallel_coordinates(found),
        ),
        tables=(checklist.front(front),) if len(front) else (),
        empty="This study holds no search yet. This command fills the block:",
        command=f"python sweeps/search.py {material.study.name} --out {material.study}",
    )


def cost(material: Material) -> Block:
    """Show what the runs cost."""
    return Block(
        "cost",
        "What it cost",
        "FLOPs are counted by formula; times are those of the runs themselves. The table adds up "
        "what was spent."
        + checklist.saving(material.table)
        + checklist.overhead(material.outcome),
        some(cost=plots.cost(material.findings.finished)),
        tables=(checklist.cost(material.table),),
        empty="No run has finished yet.",
    )


def reproducibility(material: Material) -> Block:
    """Answer what a reviewer asks."""
    return Block(
        "checklist",
        "Reproducibility",
        "What one needs to know to judge or repeat this study.",
        {},
        tables=(checklist.reproducibility(material.findings, material.table, material.seed),),
    )
