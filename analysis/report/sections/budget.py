"""The budget slider: what every budget would buy, in the words that the page shows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.report.figures.budget import predicted
from analysis.report.section import Material, Section
from analysis.study.budgets import LIMIT, Plan, WrongSize
from analysis.study.machines import Machine, machines
from analysis.study.settings import one_setting
from tarflow.config import RunConfig
from tarflow.config_files import to_yaml
from tarflow.human import MISSING, bits, count, interval, money, number, power, seconds

SOURCES = {
    "surface law": "The size is the best one by the law of size and data.",
    "IsoFLOP minima": "The size follows the best sizes of the budgets, because the law of size "
    "and data does not tell the best size.",
    "best run": "The size is that of the best run of the largest budget, because these runs do "
    "not tell how the best size grows.",
}
RATIOS = {0.1: "1/10", 0.25: "1/4", 0.5: "1/2", 1.0: "best", 2.0: "2x", 4.0: "4x", 10.0: "10x"}


def budget(material: Material) -> list[Section]:
    """Return the section of the slider; none in a study without plans."""
    plans = material.plans
    if not plans:
        return []
    return [
        Section(
            "budget",
            "What would another budget buy?",
            "Move the slider: everything below is what the laws of this study expect of the best "
            "run with that training compute.",
            {"predicted": predicted(material.findings, plans, start(material))},
            partial="slider.html.j2",
        )
    ]


def start(material: Material) -> int:
    """Return the index of the plan that is recommended next, where the slider starts."""
    return next((i for i, plan in enumerate(material.plans) if plan.following), 0)


def page_data(material: Material) -> dict[str, Any] | None:
    """Return what the slider shows, as JSON; None in a study without plans.

    Stops hold texts and no numbers, except those that scripts sort by or draw.
    """
    plans, findings = material.plans, material.findings
    if not plans:
        return None
    known = machines(findings.finished, plans[-1].recommendation.config)
    texts = [_yaml(plan, findings.bits_unit).splitlines() for plan in plans]
    return {
        "start": start(material),
        "bits_unit": findings.bits_unit,
        "machines": [
            {"name": item.name, "basis": item.basis, "priced": item.price is not None}
            for item in known
        ],
        "ratios": list(RATIOS.values()),
        "limit": f"{LIMIT:,.0f}",
        "runs": _runs(material),
        "yaml": texts[0],
        "stops": [
            _stop(plan, findings.budgets[-1].flops)
            | {"zone": _zone(plan, float(findings.runs["flops"].max()))}
            | {"times": [_time(machine, plan.recommendation.config) for machine in known]}
            | {"yaml": {i: own for i, own in enumerate(text) if own != texts[0][i]}}
            for plan, text in zip(plans, texts, strict=True)
        ],
    }


def _stop(plan: Plan, largest: float) -> dict[str, Any]:
    item, config = plan.recommendation.allocation, plan.recommendation.config
    kid = plan.quality
    edge = f"At the edge: {item.edge}." if item.edge else ""
    return {
        "flops": plan.flops,
        "bpd": item.bpd,
        "key": power(plan.flops, 3),
        "budget": f"{power(plan.flops)} FLOPs",
        "ratio": _times(plan.flops / largest),
        "bits": bits(item.bpd),
        "band": interval(item.bpd_interval, bits),
        "kid": [number(kid.kid), interval(kid.interval)] if kid else None,
        "size": f"{config.model.channels} channels",
        "shape": f"{config.model.layer_split or f'{config.model.blocks}x{config.model.layers}'} · "
        f"{count(item.model_params)} parameters",
        "images": count(config.images),
        "epochs": f"{number(item.epochs)} epochs" if item.epochs else "",
        "caution": item.caution,
        "notes": " ".join(filter(None, [SOURCES[item.source], edge])),
        "nearest": plan.nearest,
        "wrong": [_wrong(size) for size in plan.wrong_sizes],
    }


def _times(ratio: float) -> str:
    if abs(np.log(ratio)) < 0.005:
        return "the largest budget of the study"
    return f"{number(ratio)} times the largest budget of the study"


def _zone(plan: Plan, largest: float) -> str:
    """Return whether runs trained a budget, roll-outs tested predictions that far, or neither."""
    if not plan.tested:
        return "beyond"
    return "trained" if plan.flops <= 1.05 * largest else "tested"


def _wrong(size: WrongSize) -> dict[str, Any]:
    return {
        "params": count(size.params),
        "bits": number(size.extra_bits),
        "band": interval(size.interval),
        "compute": number(size.compute) if np.isfinite(size.compute) else None,
        "trained": size.trained,
    }


def _time(machine: Machine, config: RunConfig) -> list[str | float | None]:
    """Return the words for time and price, and the price to sort by."""
    spent = machine.seconds(config)
    if spent is None:
        return ["does not fit", MISSING, None]
    price = None if machine.price is None else spent / 3600 * machine.price
    return [seconds(spent), MISSING if price is None else money(price), price]


def _runs(material: Material) -> dict[str, dict[str, str]]:
    """Return name, bits and sample quality of the runs that are nearest to a plan."""
    runs = material.table[material.table["run_id"].isin({p.nearest for p in material.plans})]
    kid = one_setting(material.scored).set_index("run_id")["kid"].to_dict()
    return {
        run["run_id"]: {
            "name": run["name"],
            "bits": bits(run["bpd"]),
            "kid": number(kid.get(run["run_id"])),
        }
        for _, run in runs.iterrows()
    }


def _yaml(plan: Plan, unit: str) -> str:
    """Return the config of a plan as YAML, without folders of the machine that wrote the page."""
    config, item = plan.recommendation.config, plan.recommendation.allocation
    lines = [
        f"{power(plan.flops)} training FLOPs; expected {bits(item.bpd)} {unit} "
        f"(90% interval {interval(item.bpd_interval, bits)})"
    ]
    if Path(config.data.name).is_absolute():
        lines += ["data.name: write the folder of the images on your machine"]
        config = replace(config, data=replace(config.data, name=Path(config.data.name).name))
    return to_yaml(config, "\n".join(lines))
