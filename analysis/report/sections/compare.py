"""The sections of the page that compares studies."""

from analysis.comparing.comparison import Comparison, Contrast, interval_of_pair
from analysis.comparing.differences import signed_difference
from analysis.comparing.words import excludes
from analysis.laws.intervals import LEVEL
from analysis.report.figures import compare as figures
from analysis.report.section import Chapter, Section, Table
from tarflow.human import MISSING, bits, interval, percent


def chapters(comparison: Comparison) -> list[Chapter]:
    """Return every chapter in reading order."""
    better = (_laws(comparison), *map(_pairs, comparison.contrasts))
    return [
        Chapter("better", "Which study is better?", "Better", better),
        Chapter("apart", "What sets the studies apart?", "Settings", (_settings(comparison),)),
    ]


def pair_tables(comparison: Comparison) -> list[Table]:
    """Return a table of the pairs of runs for every study that shares runs with the first."""
    return [_pair_table(item) for item in comparison.contrasts if len(item.pairs.rows)]


def _laws(comparison: Comparison) -> Section:
    savings = [item for contrast in comparison.contrasts for item in contrast.savings]
    clear = [item for item in savings if excludes(item.interval, 1)]
    return Section(
        "law",
        "Loss against compute",
        "Each point is a finished run. A line is the law of a study: its lowest bits at every "
        f"budget, with the best size; the band is its {percent(LEVEL)} interval. Lower is better. "
        "A level bar between two laws shows how much compute one clearly saves at equal quality.",
        {"law": figures.laws(comparison.studies, clear)},
    )


def _pairs(contrast: Contrast) -> Section:
    one, two = contrast.first.name, contrast.second.name
    shown = figures.differences(contrast)
    tables = () if shown is None else (_pair_table(contrast),)
    return Section(
        f"pairs-{two}",
        f"Run by run: {two} against {one}",
        f"The same size, budget and seed in both studies, scored on the same images with the same "
        f"noise draws; below 0, {two} is better. Bars are {percent(LEVEL)} intervals over images: "
        "they do not hold the noise between two trainings.",
        {} if shown is None else {"differences": shown},
        tables=tables,
        empty="The studies share no run with the same label, seed and split.",
    )


def _pair_table(contrast: Contrast) -> Table:
    rows = tuple(
        (
            row["name"],
            bits(row["bpd_first"]),
            bits(row["bpd_second"]),
            signed_difference(row["difference"]),
            interval(interval_of_pair(row), signed_difference),
        )
        for row in contrast.pairs.rows.to_dict("records")
    )
    names = contrast.first.name, contrast.second.name
    return Table(
        ("run", *names, "difference", f"{percent(LEVEL)} interval"),
        rows,
        contrast.first.bits_unit.capitalize(),
    )


def _settings(comparison: Comparison) -> Section:
    table = comparison.settings
    missing = [study.name for study in comparison.studies if not study.settings]
    rows = tuple(
        tuple(cell or MISSING for cell in row) for row in table.itertuples(index=False, name=None)
    )
    return Section(
        "settings",
        "Settings that differ",
        "Those of study.yaml."
        + (f" There is no readable study.yaml of {' and '.join(missing)}." if missing else ""),
        {},
        tables=(Table(tuple(table.columns), rows),) if rows else (),
        empty="" if rows else "No setting differs.",
    )
