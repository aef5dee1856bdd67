"""What all pages share: one HTML file that opens offline, with its figures as data."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from analysis.report.summary import typeset

# plotly.js with scatter traces only: a quarter of the whole bundle that the package plotly ships.
PLOTLY = Path(__file__).parent / "scripts" / "plotly-basic.min.js"


def fill(template: str, **values: Any) -> str:
    """Return a page as HTML.

    Args:
        template: A template that extends `page.html.j2`.
        **values: What it shows: `kind` and `name` of the page, `facts` under its title, its
            `sections`, the `command` that writes it, `data` for its scripts, and what the template
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
        "json": lambda plain: in_script(json.dumps(plain)),
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


def csv_uri(table: pd.DataFrame) -> str:
    """Return a table as a link that saves it as CSV, without a server."""
    return "data:text/csv;charset=utf-8," + quote(
        table.to_csv(index=False, float_format="%.8g"), safe=",:;/"
    )
