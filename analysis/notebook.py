"""A study in a notebook: its tables, laws, predictions and figures."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from analysis.laws.allocation import allocate, best_run
from analysis.laws.average import Law
from analysis.laws.fit import Fit
from analysis.report.figures.theme import in_scheme
from analysis.report.page import all_sections, material_of
from analysis.study.advice import check_budget, recommend
from analysis.study.findings import Findings, find
from analysis.study.folder import note_of, read_settings, read_study
from analysis.study.forecast import read_ledger
from analysis.study.names import bits_unit_of
from analysis.study.rows import read_config
from tarflow.config import RunConfig
from tarflow.errors import UserError
from tarflow.human import bits, count, interval, names, power
from tarflow.storage import locate


@dataclass(frozen=True)
class Prediction:
    """What a budget should give, by the laws of a study."""

    flops: float  # training FLOPs
    bits: float  # likelihood of a run of the best size; nan without a law of size and data
    low: float  # ends of the 90% interval of that run
    high: float
    size: int  # parameters of the best model that can be built
    channels: int  # its width
    images: int  # training images seen
    caution: str  # "" or why the prediction is a guess
    bits_unit: str  # bits per dimension, or per latent dimension

    def __str__(self) -> str:
        return (
            f"{power(self.flops)} FLOPs: {bits(self.bits)} {self.bits_unit} "
            f"({interval((self.low, self.high), bits)}) with {count(self.size)} parameters "
            f"({self.channels} channels) on {count(self.images)} images"
        )


@dataclass(frozen=True, eq=False)
class OpenStudy:
    """A study folder that has been read; laws and figures are computed when first used."""

    path: Path
    runs: pd.DataFrame = field(repr=False)  # runs.parquet: every run, failed ones too
    evaluations: pd.DataFrame = field(repr=False)  # evaluations.parquet
    note: str

    @cached_property
    def findings(self) -> Findings:
        """Everything that the runs show; the laws take seconds to fit."""
        return find(self.runs, self.evaluations, forecasts=read_ledger(self.path))

    @property
    def law(self) -> Law | Fit:
        """The law of size and data, or the law of compute if there is none.

        Raises:
            UserError: If there are too few runs for a law.
        """
        law = self.findings.surface or self.findings.frontier
        if law is None:
            raise UserError(f"{self.path} has too few finished runs for a law")
        return law

    def predict(self, flops: float) -> Prediction:
        """Return what a budget of training FLOPs should give at its best size.

        Raises:
            UserError: If the budget is not positive, or the study has no finished run of a grid.
        """
        check_budget(flops)
        found = self.findings
        if found.runs.empty:
            raise UserError(f"{self.path} has no finished run that a law can read")
        template = read_config(best_run(found.runs))
        best = allocate(flops, found.runs, template, found.surface, found.isoflops)
        low, high = best.bpd_interval or (float("nan"), float("nan"))
        return Prediction(
            flops=flops,
            bits=float("nan") if best.bpd is None else best.bpd,
            low=low,
            high=high,
            size=best.model_params,
            channels=best.channels,
            images=best.images,
            caution=best.caution,
            bits_unit=found.bits_unit,
        )

    def best(self, flops: float | None = None) -> RunConfig:
        """Return the config to train with a budget, by default 4 times the largest of the study.

        Raises:
            UserError: If the budget is not positive, or the study has no finished run of a grid.
        """
        return recommend(self.findings, flops).config

    @cached_property
    def _drawn(self) -> dict[str, go.Figure]:
        """The figures of the study's page, in its order."""
        material = material_of(self.path, self.runs, self.evaluations, self.findings, seed=0)
        return {
            section.key if len(section.figures) == 1 else f"{section.key}: {view}": drawn
            for section in all_sections(material)
            for view, drawn in section.figures.items()
        }

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of the figures that `plot` draws."""
        return tuple(self._drawn)

    def plot(self, name: str = "law", scheme: str = "light") -> go.Figure:
        """Return a figure of the study's page.

        Args:
            name: One of `figures`.
            scheme: Colours: light or dark.

        Raises:
            UserError: If there is no such figure or scheme.
        """
        if name not in self._drawn:
            raise UserError(f"there is no figure '{name}'; the figures are {names(self.figures)}")
        return in_scheme(self._drawn[name], scheme)

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><th style="text-align: left">{escape(label)}</th>'
            f'<td style="text-align: left">{escape(text)}</td></tr>'
            for label, text in self._facts().items()
        )
        return f"<table>{rows}</table>"

    def _facts(self) -> dict[str, str]:
        """Return the study in a few words, without fitting a law."""
        done = self.runs[self.runs["status"] == "done"]
        facts = {
            "study": self.path.resolve().name,
            "note": self.note,
            "runs": f"{len(done)} of {len(self.runs)} finished",
            "sizes": f"{_range(done['params'], count)} parameters",
            "budgets": f"{_range(done['flops'], power)} FLOPs",
            "best": f"{bits(done['bpd'].min())} {bits_unit_of(done)}",
            "scored samples": f"{len(self.evaluations)} sampler settings of runs",
        }
        empty = ("sizes", "budgets", "best") if done.empty else ()
        return {label: text for label, text in facts.items() if text and label not in empty}


def _range(values: pd.Series, write: Callable[[float], str]) -> str:
    return " to ".join(dict.fromkeys([write(values.min()), write(values.max())]))


def open_study(path: str | Path) -> OpenStudy:
    """Read a study folder, local or an address such as s3://bucket/study.

    Raises:
        UserError: If the folder holds no study, or tables of another version.
    """
    folder = locate(path)
    runs, evaluations = read_study(folder)
    return OpenStudy(folder, runs, evaluations, note_of(read_settings(folder)))
