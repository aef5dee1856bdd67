"""`python -m tarflow cost`: the price of a run."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from tarflow import cost as costs
from tarflow.config import RunConfig, read_yaml


def cost(config: Annotated[Path, tyro.conf.Positional], /) -> int:
    """Say what a run costs before it is run: parameters, FLOPs, memory, hours and money.

    Args:
        config: a config file, such as best.yaml of a study.
    """
    chosen = read_yaml(RunConfig, config)
    memory, flops = costs.memory(chosen), costs.run_flops(chosen)
    rough = 6.0 * costs.params(chosen.model) * chosen.images * chosen.model.tokens
    print(
        f"{costs.params_total(chosen.model):,} parameters, of them {costs.params(chosen.model):,} "
        f"in matrix products\n{chosen.images:,} images, {flops:.3g} training FLOPs "
        f"(6 N tokens: {rough:.3g})"
        f"\n{memory.total / 1e9:.2f} GB a worker: {memory.state / 1e9:.2f} of state, "
        f"{memory.activations / 1e9:.2f} of activations"
    )
    precision = "float32" if chosen.precision in ("float32", "float64") else "bfloat16"
    table = Table("device", "fits", "device-hours", "US dollars")
    table.title = f"in {precision} at 40% of the data sheet's peak, list prices"
    for name, device in costs.ACCELERATORS.items():
        hours = flops / (0.4 * device.flops[precision]) / 3600
        fits = "yes" if memory.total < device.memory else "no"
        table.add_row(name, fits, f"{hours:.3g}", f"{hours * device.price:.3g}")
    Console().print(table)
    return 0
