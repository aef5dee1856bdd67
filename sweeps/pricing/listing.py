"""Every preset study in two lines: what it asks, what it costs, and the data it needs."""

from dataclasses import replace

from sweeps.design.presets import FOLDER, IMPORTS, PRESETS, description, how_to_import, load
from sweeps.design.study import Study, resolve_precision, resolve_study
from sweeps.pricing.plan import Plan, make_plan
from tarflow import human
from tarflow.errors import UserError
from tarflow.identity import UNKNOWN, with_hash
from tarflow.storage import locate

NO_RUNS = FOLDER  # a folder without runs, so that nothing counts as done


def listing(devices: int | None, accelerator: str | None, price: float | None) -> list[str]:
    """Return lines on every preset, and how to import the data that are not here.

    Costs are those of a whole study without its sampler search, whatever its folder holds.

    Args:
        devices: Number of devices to plan with.
        accelerator: Accelerator to plan for; by default the study's, or else this machine.
        price: US dollars per device-hour.

    Raises:
        UserError: If the accelerator is not known, or the number of devices is not positive.
    """
    lines, missing = [], []
    for name in PRESETS:
        study, here = _resolved(load(name))
        source = study.base.data.name
        plan = make_plan(study, NO_RUNS, devices, accelerator, price)
        lines.append(f"{name}: {description(name)}")
        lines.append(f"    {in_words(plan)}; data: {source}{', not here yet' * (not here)}")
        missing += [source] * (not here and source not in missing)
    lines += [f"{source}: make it with: {how_to_import(source)}" for source in missing]
    return lines


def in_words(plan: Plan) -> str:
    """Say in one line what a plan costs."""
    count, device = len(plan.rows), plan.rate.accelerator or "core"
    money = f", {human.money(plan.money)}" * bool(plan.price.hourly)
    return (
        f"{count} run{'s' * (count != 1)}, {human.power(plan.flops)} FLOPs, "
        f"{human.seconds(plan.wall_seconds)} on {plan.devices} {device}"
        + "s" * (plan.devices != 1)
        + money
    )


def _resolved(study: Study) -> tuple[Study, bool]:
    """Return a study that can be planned, and whether its data are here."""
    try:
        return resolve_study(study), True
    except UserError:
        name = study.base.data.name
        if name not in IMPORTS or locate(name).exists():
            raise
        study = resolve_precision(study)
        return replace(study, base=with_hash(study.base, UNKNOWN)), False
