"""What the sections of the page are made of, and what they are made from."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analysis.advice import Recommendation
from analysis.budgets import Plan
from analysis.findings import Findings


@dataclass(frozen=True)
class Table:
    """A table of the page; every cell is text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """An embedded image with the words under it."""

    source: str  # data URI
    title: str
    note: str


@dataclass(frozen=True)
class Section:
    """One section of the page; if it has nothing to show, it says what would fill it."""

    key: str  # anchor and file name
    title: str
    aid: str  # how to read it, in one or two sentences
    figures: Mapping[str, go.Figure]  # by the name of the view
    points: tuple[str, ...] = ()  # sentences of a list
    columns: int = 2  # figures side by side where there is room
    tabs: bool = False  # one view at a time
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    empty: str = ""  # shown when there is nothing to draw
    command: str = ""  # for the shell
    partial: str = ""  # template with what else it shows
    links: tuple[tuple[str, str, str], ...] = ()  # text, file name and data URI of downloads


@dataclass(frozen=True)
class Chapter:
    """The sections that answer one question of the reader."""

    key: str  # anchor
    title: str
    short: str  # in the navigation of a phone
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Material:
    """Everything the sections are made from: the contents of a study folder, and its findings."""

    study: Path
    table: pd.DataFrame  # every run, failed ones too
    scored: pd.DataFrame  # runs joined to their sample scores, one row per sampler setting
    findings: Findings
    plans: tuple[Plan, ...]  # what other budgets would buy; empty without a law
    reference: Mapping[str, Any]  # kid, kid_se of real training images; may be empty
    outcome: Mapping[str, Any]  # wall_seconds, device_seconds, devices of the sweep; or empty
    seed: int
    advice: Recommendation | None  # the run to train next

    @property
    def place(self) -> str:
        """The folder as a reader types it; a page never holds a path of the machine."""
        study = self.study.resolve()
        near = study.is_relative_to(Path.cwd())
        return str(study.relative_to(Path.cwd())) if near else study.name


def existing(**figures: go.Figure | None) -> dict[str, go.Figure]:
    """Return the figures that are not None, by the name of the view."""
    return {name.replace("_", " "): shown for name, shown in figures.items() if shown is not None}


def embedded(path: Path, title: str, note: str) -> Picture:
    """Return a PNG file as a picture of the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return Picture(f"data:image/png;base64,{data}", title, note)
