"""What the sections of the page are made of, and what they are made from."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from analysis.report.figures.runs import MOST_CURVES
from analysis.report.figures.theme import stride
from analysis.study.advice import Recommendation
from analysis.study.budgets import Plan
from analysis.study.findings import Findings
from analysis.study.folder import tables_of_runs


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
    run: str = ""  # id of the run whose samples it shows


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
    strips: tuple[Picture, ...] = ()  # wide pictures, one below another
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

    @cached_property
    def curves(self) -> Mapping[str, pd.DataFrame]:
        """Curve table of each run that is drawn with one, by its id."""
        return tables_of_runs(self.study, self.with_curve, "curve.parquet")

    @property
    def with_curve(self) -> pd.DataFrame:
        """The finished runs whose curves are read; of many, evenly spaced in compute."""
        runs = self.findings.finished.sort_values("flops")
        return runs.iloc[:: stride(len(runs), MOST_CURVES)]


def existing(**figures: go.Figure | None) -> dict[str, go.Figure]:
    """Return the figures that are not None, by the name of the view."""
    return {name.replace("_", " "): shown for name, shown in figures.items() if shown is not None}


def embedded(path: Path, title: str, note: str, run: str = "") -> Picture:
    """Return a PNG file as a picture of the page."""
    return Picture(png_uri(sample_sheet(path.read_bytes())), title, note, run)


def sample_sheet(content: bytes) -> Image.Image:
    """Read a picture of samples, one pixel for each of theirs: browsers enlarge it sharply."""
    with Image.open(io.BytesIO(content)) as picture:
        scale = int(picture.info.get("scale", 1))  # absent from pictures of earlier releases
        size = picture.width // scale, picture.height // scale
        sheet = picture.resize(size, Image.Resampling.NEAREST)
        side = int(picture.info.get("side", 0))  # of an image; 0 if the picture does not say
        sheet.info = {"rows": picture.info.get("rows", "images"), "side": side}
    return sheet


def png_uri(picture: Image.Image) -> str:
    """Return a picture as the data URI of a PNG file."""
    written = io.BytesIO()
    picture.save(written, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
