"""What the page of a study is made from, and what its sections are made of."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analysis.findings import Findings
from analysis.report.checklist import Table


@dataclass(frozen=True)
class Picture:
    """An embedded image with the words under it."""

    source: str  # data URI
    title: str
    note: str


@dataclass(frozen=True)
class Block:
    """One section of the page; a block without figures says what would fill it."""

    key: str  # anchor and file name
    title: str
    aid: str  # how to read it, one or two sentences
    figures: Mapping[str, go.Figure]  # by the name of the view
    columns: int = 2  # figures side by side where there is room
    tabs: bool = False  # one view at a time
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    empty: str = ""  # shown when there is nothing to draw
    command: str = ""  # that fills the block


@dataclass(frozen=True)
class Material:
    """What a study folder holds, read."""

    study: Path
    table: pd.DataFrame  # every run, failed ones too
    scored: pd.DataFrame  # runs joined to their sample scores, one row per sampler setting
    findings: Findings
    reference: Mapping[str, Any]  # kid, kid_se of real training images; may be empty
    outcome: Mapping[str, Any]  # wall_seconds, device_seconds, devices of the sweep; or empty
    seed: int


def some(**figures: go.Figure | None) -> dict[str, go.Figure]:
    """Return the figures that there are, by the name of the view."""
    return {name.replace("_", " "): shown for name, shown in figures.items() if shown is not None}


def embedded(path: Path, title: str, note: str) -> Picture:
    """Return a PNG file as a picture of the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return Picture(f"data:image/png;base64,{data}", title, note)
