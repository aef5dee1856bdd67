"""What each technique is worth, as one HTML page."""

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from analysis.comparing.differences import signed_difference
from analysis.comparing.shares import Share, labels
from analysis.report.figures import shares as figures
from analysis.report.section import Chapter, Section, Table
from analysis.report.template import fill
from tarflow.human import bits, interval, number, series
from tarflow.record import write_text


def in_sentences(shares: Sequence[Share]) -> list[str]:
    """Say what each technique is worth; what is clear comes first, the features of KID last."""
    named = list(zip(labels(shares), shares, strict=True))
    lines = [_sentence(*pair) for pair in sorted(named, key=lambda pair: not pair[1].clear)]
    studies: dict[str, dict[str, None]] = {}  # by features, in order
    for share in shares:
        if share.features:
            studies.setdefault(share.features, {})[share.study] = None
    if len(studies) == 1:
        lines += [f"KID is the distance in features of {next(iter(studies))}."]
    elif studies:
        of = series([f"{name} ({', '.join(mine)})" for name, mine in studies.items()])
        lines += [f"KID is the distance in features of each data set: {of}."]
    return lines


def table(shares: Sequence[Share]) -> Table:
    """Return one row per technique and score."""
    columns = ("technique", "score", "difference (90%)", "of it", "best choice", "without it")
    rows = tuple(
        (
            label,
            share.score,
            f"{_signed(share, share.difference)} ({_ends(share)})",
            f"{100 * share.share:+.0f}%" if share.level > 0 else "",
            f"{share.best} (of {share.among})",
            f"{share.without}: {_write(share, share.level)}",
        )
        for label, share in zip(labels(shares), shares, strict=True)
    )
    return Table(columns, rows)


def write_shares(page: Path, shares: Sequence[Share], places: Sequence[str]) -> None:
    """Write a page that opens offline.

    Args:
        page: The file to write.
        shares: What each technique is worth.
        places: The folders of the studies, as the user typed them.

    Raises:
        UserError: If the page cannot be written.
    """
    scores = dict.fromkeys(share.score for share in shares)  # KID in percent has one figure
    drawn = {
        score: figures.shares(shown)
        for score in scores
        if (shown := [share for share in shares if share.score == score and share.level > 0])
    }
    section = Section(
        "shares",
        "Difference to doing without each technique",
        "The best choice of each technique minus doing without it, with its 90% interval; left of "
        "0 is better. Every study compares at equal training FLOPs, and seeds are paired. KID is "
        "chosen on one half of the draws and compared on the other; the lowest bits of several "
        "choices are low partly by luck. Differences of KID are in percent of the KID without.",
        drawn,
        columns=1,
    )
    studies = list(dict.fromkeys(share.study for share in shares))
    html = fill(
        "compare.html.j2",
        kind="TarFlow ablations",
        name="What each technique is worth",
        facts=" · ".join(studies),
        command=f"python -m analysis shares {' '.join(map(shlex.quote, places))}",
        data={},
        leading=[],
        others=in_sentences(shares),
        reservations=[],
        studies=table(shares),
        notes={},
        chapters=[Chapter("worth", "What is each technique worth?", "Worth", (section,))],
    )
    write_text(page, html)


def _sentence(label: str, share: Share) -> str:
    verdict = "no clear effect"
    if share.clear:
        verdict = "better" if share.difference < 0 else "worse"
    start = f"{label[:1].upper()}{label[1:]}: {share.best}"
    gain = f"{_signed(share, share.difference)} {share.score} ({_ends(share)})"
    return f"{start} against {share.without}: {gain}, {verdict}."


def _ends(share: Share) -> str:
    return interval(share.interval, partial(_signed, share))


def _write(share: Share, value: float) -> str:
    return bits(value) if share.of_likelihood else number(value)


def _signed(share: Share, value: float) -> str:
    if share.of_likelihood:
        return signed_difference(value)
    return ("+" if value > 0 else "") + number(value)
