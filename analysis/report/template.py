"""What all pages share: one HTML file that opens offline, with its figures as data."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from pydantic_core import to_json

from analysis.report.summary import typeset
from tarflow.human import names

# plotly.js with scatter traces only: a quarter of the whole bundle that the package plotly ships.
PLOTLY = Path(__file__).parent / "scripts" / "plotly-basic.min.js"


def fill(template: str, **values: Any) -> str:
    """Return a page as HTML.

    Args:
        template: A template that extends `page.html.j2`.
        **values: What it shows: `kind` and `name` of the page, `facts` under its title, its
            `chapters`, the `command` that writes it, `data` for its scripts, and what the template
            itself reads.
    """
    environment = Environment(
        loader=PackageLoader("analysis.report", "."),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure_json": _figure_json,
        "json": lambda plain: in_script(to_json(plain, inf_nan_mode="null").decode()),
        "file_name": file_name,
        "in_words": in_words,
        "typeset": typeset,
    }
    return environment.get_template(template).render(
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        plotly=Markup(PLOTLY.read_text("utf-8")),
        **values,
    )


def _figure_json(figure: go.Figure) -> Markup:
    return in_script(figure.to_json())


def in_script(text: str) -> Markup:
    """Return JSON as the contents of a script element."""
    return Markup(text.replace("</", "<\\/").replace("<!--", "<\\!--"))


def file_name(parts: Sequence[str]) -> str:
    """Return parts as one file name without spaces or signs that a shell or a disk minds.

    >>> file_name(["digits v2", "law", "loss & FLOPs"])
    'digits-v2-law-loss-FLOPs'
    """
    return re.sub(r"[^\w.]+", "-", "-".join(parts)).strip("-.")


def in_words(figure: go.Figure) -> str:
    """Return what a figure shows, for readers who do not see it.

    >>> line = go.Scatter(x=[1, 2], y=[3.0, 4.0], name="law")
    >>> in_words(go.Figure(line, layout={"xaxis": {"title": "C"}, "yaxis": {"title": "L"}}))
    'L against C: law'
    """
    x, y = figure.layout.xaxis.title.text or "", figure.layout.yaxis.title.text or ""
    named = dict.fromkeys(trace.name for trace in figure.data if trace.name)
    axes = f"{y} against {x}" if x and y else x or y
    return ": ".join(filter(None, [axes.replace("<br>", " "), names(list(named))]))


def json_uri(plain: Any) -> str:
    """Return plain values as a link that saves them as JSON, null for numbers not finite."""
    text = to_json(plain, inf_nan_mode="null", indent=1).decode()
    return "data:application/json;charset=utf-8," + quote(text)


def csv_uri(table: pd.DataFrame) -> str:
    """Return a table as a link that saves it as CSV, without a server."""
    return "data:text/csv;charset=utf-8," + quote(
        table.to_csv(index=False, float_format="%.8g"), safe=",:;/"
    )
