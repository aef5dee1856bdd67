"""The warnings that a reader of a study needs, in plain sentences."""

import json
from functools import cache
from typing import Any

import pandas as pd

from analysis.laws.average import Law
from analysis.laws.design import doubts, sizes_at_the_edge
from analysis.laws.fit import Fit
from analysis.laws.repetition import HARMLESS
from analysis.laws.validation import CORRECTED
from analysis.study.findings import Findings
from analysis.study.names import are_latent, bits_unit_of
from tarflow.config import OptimConfig
from tarflow.config_files import from_dict
from tarflow.errors import UserError

RECIPE = {  # settings that a law over sizes takes to be equal
    "batch": "the batch size",
    "precision": "the precision",
    "noise_std": "the noise",
    "optimizer": "the optimizer",
    "schedule": "the schedule",
    "warmup_images": "the warm-up",
    "cooldown": "the cooldown",
    "weight_decay": "the weight decay",
    "base_channels": "the width at which rates were tuned",
    "ema": "the weight average",
}
SHORT = 0.1  # how far coverage may fall below its promise without a warning


def warnings_of(findings: Findings) -> tuple[str, ...]:
    """Return what limits the findings, most fundamental first."""
    lines = [*_rows(findings), *_design(findings), *_laws(findings), *_tests(findings)]
    lines += _sizes(findings)
    return tuple(dict.fromkeys(lines))


def _rows(findings: Findings) -> list[str]:
    lines = []
    runs = findings.compared
    if runs.empty:
        return ["No finished grid run: there is nothing to fit yet."]
    failed = sum(item.reason.startswith("failed") for item in findings.left_out)
    if failed:
        lines.append(f"{failed} failed run(s) leave holes in the grid.")
    if findings.noise is None:
        lines.append("No config was run with two seeds: the noise between equal runs is unknown.")
    elif findings.noise.freedom < 2:
        lines.append("The noise between equal runs is estimated from two seeds only.")
    if are_latent(runs):
        lines.append(
            "These models are trained on latents of an autoencoder. Their bits are "
            f"{bits_unit_of(runs)}, -log2 of the density of a noisy latent per value: they depend "
            "on the noise and the autoencoder, and cannot be compared with bits of pixels."
        )
    epochs = runs["epochs"].max() if "epochs" in runs else 0.0
    if len(findings.runs) and epochs > HARMLESS:
        lines.append(
            f"Runs see the training images up to {epochs:.3g} times: beyond {HARMLESS:g} epochs, "
            "the surface law discounts repeats at a rate measured on text; the frontier law does "
            "not discount them."
        )
    return lines


def _design(findings: Findings) -> list[str]:
    """Return what the runs could not tell even a perfect law."""
    runs, noise = findings.runs, findings.noise
    if runs.empty:
        return []
    try:
        optim = [_optim(json.dumps(json.loads(text)["optim"])) for text in runs["config"]]
    except (UserError, ValueError, TypeError, KeyError):  # a table from elsewhere
        return doubts(runs, noise.std if noise else None, RECIPE)
    settings = pd.DataFrame(optim, index=runs.index)
    return doubts(runs.assign(**settings), noise.std if noise else None, RECIPE)


@cache
def _optim(text: str) -> dict[str, Any]:
    return vars(from_dict(OptimConfig, json.loads(text)))


def _laws(findings: Findings) -> list[str]:
    lines = []
    if len(findings.runs) and findings.surface is None:
        lines.append(
            f"Too few runs for a surface law L(N, D): {len(findings.runs)} comparable runs of "
            f"{findings.runs['params'].nunique()} sizes at {len(findings.budgets)} budgets."
        )
    if len(findings.runs) and findings.frontier is None:
        lines.append(
            f"Too few runs for a frontier law L(C): {len(findings.budgets)} budget(s); "
            "it needs three."
        )
    for law in (findings.frontier, findings.surface):
        if law is not None:
            lines += _doubts(law)
    if findings.frontier and "E" not in findings.frontier.values:
        lines.append(
            "The frontier law has no floor, because so few budgets cannot distinguish one from a "
            "smaller exponent. It extrapolates too low."
        )
    bpd = findings.frontier_points["bpd"]
    if (bpd.diff().dropna() > 0).any():
        lines.append(f"A larger budget reached a worse {findings.bpd_name} than a smaller one.")
    return lines


def _doubts(law: Law | Fit) -> list[str]:
    fit = law.general if isinstance(law, Law) else law
    title = f"{fit.name} law, {fit.formula}"
    lines = [f"{title}: {fit.reasons[name]}." for name, ok in fit.identified.items() if not ok]
    if fit.status == "multi-modal":
        lines.append(
            f"{title}: only {fit.agreement:.0%} of the starts reach the best optimum; "
            "other parameters fit almost as well."
        )
    return lines


def _tests(findings: Findings) -> list[str]:
    lines = [
        f"{law_of(item.law)} missed the held-out largest run: {item.verdict}"
        for item in findings.held_out
        if not item.inside
    ]
    surface = findings.surface
    if surface is not None and not surface.rollouts:
        lines.append(
            "Too few runs for roll-outs: the form with the fewest parameters is used, and the "
            "bands do not include the error of the form."
        )
    lines += [
        f"The {item.level:.0%} bands hold only {item.inside} of {item.total} roll-outs."
        for item in findings.coverage
        if item.band == CORRECTED and item.achieved < item.level - SHORT
    ]
    guess = min((item.error for item in findings.baselines), default=float("inf"))
    if surface is not None and surface.rollout_error > guess:
        lines.append("In the roll-outs, the law predicts no better than a guess without a law.")
    return lines


def law_of(law: Law | Fit) -> str:
    """Return what a law is of."""
    return "The law of compute" if law.of_compute else "The law of size and data"


def _sizes(findings: Findings) -> list[str]:
    lines = sizes_at_the_edge(findings.isoflops)
    if findings.allocation and findings.allocation[0].source != "surface law":
        lines.append(
            "The surface law does not determine the best size; sizes come from the "
            f"{findings.allocation[0].source}."
        )
    return lines
