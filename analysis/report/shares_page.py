"""What each technique is worth, as one HTML page."""

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from analysis.differences import signed_difference
from analysis.report.figures import shares as figures
from analysis.report.section import Chapter, Section, Table
from analysis.report.template import fill
from analysis.shares import Share
from tarflow.human import bits, interval, number
from tarflow.record import write_text


def in_sentences(shares: Sequence[Share]) -> list[str]:
    """Say what each technique is worth; what is clear comes first."""
    return [_sentence(share) for share in sorted(shares, key=lambda share: not share.clear)]


def table(shares: Sequence[Share]) -> Table:
    """Return one row per technique and score."""
    columns = ("technique", "study", "score", "without it", "best choice", "difference", "90%")
    rows = tuple(
        (
            share.technique,
            share.study,
            share.score,
            f"{share.without}: {_write(share, share.level)}",
            f"{share.best} (of {share.among})",
            _signed(share, share.difference),
            _ends(share),
        )
        for share in shares
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
    scores = dict.fromkeys(share.score for share in shares)
    shown = {
        score: figures.shares([share for share in shares if share.score == score])
        for score in scores
    }
    section = Section(
        "shares",
        "Difference to doing without each technique",
        "The best choice of each technique minus doing without it, with its 90% interval; left of "
        "0 is better. Every study compares at equal training FLOPs, and seeds are paired. KID is "
        "chosen on one half of the draws and compared on the other; the lowest bits of several "
        "choices are low partly by luck.",
        shown,
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


def _sentence(share: Share) -> str:
    verdict = "no clear effect"
    if share.clear:
        verdict = "better" if share.difference < 0 else "worse"
    start = f"{share.technique[:1].upper()}{share.technique[1:]} ({share.study}): {share.best}"
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
