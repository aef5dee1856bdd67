"""The answer to questions about any table of runs, as one HTML page."""

import shlex
from pathlib import Path

from analysis.report.section import Chapter
from analysis.report.sections.answer import sections
from analysis.report.template import fill
from analysis.table.answer import Answer, conclusions, in_sentences
from tarflow.record import write_text


def write_answer(page: Path, answer: Answer, table: Path, loss: str) -> None:
    """Write an answer as a page that opens offline.

    Args:
        page: The file to write.
        answer: What the table says.
        table: The file that holds the table.
        loss: Its column of losses.

    Raises:
        UserError: If the page cannot be written.
    """
    leading = conclusions(answer)
    inputs = ", ".join(answer.columns.values())
    html = fill(
        "answer.html.j2",
        kind="Scaling law of a table of runs",
        name=table.name,
        facts=f"{len(answer.law.rows)} rows · {loss} by {inputs}",
        command=f"python -m analysis fit {shlex.quote(str(table))}",
        data={},
        leading=leading,
        others=[line for line in in_sentences(answer) if line not in leading],
        chapters=[Chapter("", "", "", tuple(sections(answer, loss)))],
    )
    write_text(page, html)
