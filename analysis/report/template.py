"""What all pages share: one HTML file that opens offline, with its figures as data."""

from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from analysis.report.figures.export import to_json, to_table
from analysis.report.summary import typeset


def fill(template: str, **values: Any) -> str:
    """Return a page as HTML.

    Args:
        template: A template that extends `page.html.j2`.
        **values: What it shows: `kind` and `name` of the page, `facts` under its title, its
            `sections`, the `command` that writes it, and what the template itself reads.
    """
    environment = Environment(
        loader=PackageLoader("analysis.report", "."),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure_json": lambda figure: Markup(to_json(figure)),
        "csv": lambda figure: csv_uri(to_table(figure)),
        "typeset": typeset,
    }
    return environment.get_template(template).render(
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        plotly=Markup(get_plotlyjs()),
        **values,
    )


def csv_uri(table: pd.DataFrame) -> str:
    """Return a table as a link that saves it as CSV, without a server."""
    return "data:text/csv;charset=utf-8," + quote(table.to_csv(index=False, float_format="%.8g"))
