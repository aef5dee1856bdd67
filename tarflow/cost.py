"""The cost of a run before it starts: parameters, FLOPs, memory, and prices of devices.

FLOPs count the matrix products of training and ideal causal attention, `T(T+1)/2` pairs, with the
backward pass as twice the forward, whatever kernel runs.

Legend: `T` tokens per image, `D` values per token, `C` channels.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from tarflow import strict_yaml
from tarflow.config import RunConfig
from tarflow.errors import ConfigError
from tarflow.model_config import ModelConfig


def outputs_per_token(model: ModelConfig) -> int:
    """Count the outputs of a block per token: scale and shift, or shift only."""
    return model.token_dim * (1 if model.volume_preserving else 2)


def params(model: ModelConfig) -> int:
    """Count the weights of matrix products, the `N` of the scaling laws."""
    layer = 12 * model.channels**2
    ends = (model.token_dim + outputs_per_token(model)) * model.channels
    conditioned = sum(bool(model.prefix(block)) for block in range(model.blocks))
    projections = conditioned * model.condition_dim * model.channels
    return model.total_layers * layer + model.blocks * ends + projections


def params_total(model: ModelConfig) -> int:
    """Count all trained values: weights, biases, norms, position, class and start tables."""
    biases = 13 * model.total_layers + model.blocks
    tables = model.blocks * (model.tokens * (model.positions == "learned") + model.final_norm)
    conditioned = model.blocks if model.conditioned == "all" else 1
    tables += conditioned * (model.classes + bool(model.condition_tokens))
    ends = outputs_per_token(model) + model.token_dim * model.start_token
    return params(model) + (biases + tables) * model.channels + model.blocks * ends


def forward_flops(model: ModelConfig) -> int:
    """Count the FLOPs of one forward pass of one image.

    A block with condition tokens computes its layers for these tokens as well.
    """
    flops = 0
    ends = (model.token_dim + outputs_per_token(model)) * model.channels
    for block, layers in enumerate(model.depths):
        prefix = model.prefix(block)
        read = prefix + model.tokens
        attention = 2 * model.channels * read * (read + 1)
        flops += layers * (2 * 12 * model.channels**2 * read + attention)
        flops += 2 * (ends * model.tokens + prefix * model.condition_dim * model.channels)
    return flops


def training_flops(model: ModelConfig) -> int:
    """Count the FLOPs of one training image: forward, and backward at twice the forward."""
    return 3 * forward_flops(model)


def run_flops(config: RunConfig) -> float:
    """Count the training FLOPs of a whole run."""
    return float(training_flops(config.model)) * config.images


WIDE = {"float64": 8}  # bytes of a weight or a sum; 4 in all other precisions
NARROW = {"float64": 8, "bfloat16": 2}  # bytes of a factor of a matrix product; otherwise 4
ACTIVATIONS_PER_LAYER = 16  # values of width C kept per token and layer for the backward pass
RESIDUALS_PER_LAYER = 2  # of these, the inputs of the layer norms, which are wide
ROTATED_PER_LAYER = 2  # more: queries and keys after rotary positions
WORKING_VALUES = 10  # temporary values of width C per token in the layer being computed
END_VALUES = 8  # values of width D per token around the layers of a block
ROOM = 0.85  # share of a device's memory to fill; runtime and fragmentation take the rest
PRODUCTS_TOKENS = 512  # most tokens for which a CPU in bfloat16 attends by plain products
SENSIBLE_TOKENS = 1024  # fewest tokens in a pass before matrix products become slow


@dataclass(frozen=True)
class Memory:
    """Bytes that a worker needs for training."""

    state: int  # weights, gradients, moments and weight average, or the worker's shard of them
    copies: int  # weights in bfloat16, and layers that a sharded worker gathers temporarily
    activations: int  # of one micro-batch: kept for the backward pass, and temporary

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.state + self.copies + self.activations


def memory(config: RunConfig, device_bytes: float = math.inf) -> Memory:
    """Estimate the memory of one data-parallel worker.

    A layer keeps 16 values of width C per token: two residual inputs, the outputs of two norms,
    query, key, value, the attention output, and the fourfold hidden states before and after GELU.
    Fused layers recompute the outputs of the norms, which this estimate ignores. Only layers that
    are not fused keep the attention matrix, on a CPU in bfloat16
    (`tarflow.cpu.layers.ProductAttention`).

    Args:
        config: Run, whose workers share a batch.
        device_bytes: Memory of one worker in bytes, which limits the micro-batch and decides
            whether `auto` shards the state.
    """
    micro = micro_batch(config, device_bytes)
    return _memory(config, micro, sharded(config, device_bytes))


def micro_batch(config: RunConfig, device_bytes: float = math.inf) -> int:
    """Return the images per pass: as configured, or a worker's share halved until it fits."""
    share = -(-config.batch // config.execution.workers)
    if config.execution.micro_batch:
        return min(share, config.execution.micro_batch)
    shard = sharded(config, device_bytes)
    while share > 1 and _memory(config, share, shard).total > ROOM * device_bytes:
        share = (share + 1) // 2
    return share


def sharded(config: RunConfig, device_bytes: float) -> bool:
    """Tell whether each worker holds a shard of the training state (FSDP) instead of all of it.

    `auto` shards if the full state and the smallest sensible pass do not fit into one device.
    """
    execution = config.execution
    if execution.workers == 1 or execution.sharding == "replicate":
        return False
    share = -(-config.batch // execution.workers)
    sensible = execution.micro_batch or -(-SENSIBLE_TOKENS // config.model.tokens)
    fits = _memory(config, min(share, sensible), False).total <= ROOM * device_bytes
    return execution.sharding == "shard" or not fits


def _memory(config: RunConfig, micro: int, shard: bool) -> Memory:
    model, precision = config.model, config.precision
    wide, narrow = WIDE.get(precision, 4), NARROW.get(precision, 4)
    weights, layers = params_total(model), model.total_layers
    state = 4 * weights  # the weights, a gradient and two moments
    if config.optim.optimizer == "muon":
        state -= layers * 12 * model.channels**2  # hidden matrices have no second moment
    if config.optim.ema:
        state += weights
    layer = 12 * model.channels**2 + 13 * model.channels
    if shard:
        state = -(-state // config.execution.workers)
        copies = 2 * layer * (narrow + wide)  # this layer and the next, with gradients
    else:
        copies = params(model) * narrow if narrow < wide else 0
    residuals = RESIDUALS_PER_LAYER * wide
    values = ACTIVATIONS_PER_LAYER - RESIDUALS_PER_LAYER
    values += ROTATED_PER_LAYER if model.positions == "rope" else 0
    kept = model.channels * (residuals + values * narrow)
    plain = config.execution.device == "cpu" and not config.execution.fused
    if narrow < wide and plain and model.tokens <= PRODUCTS_TOKENS:
        kept += model.channels // model.head_dim * model.tokens * narrow  # attention matrix
    working = model.channels * WORKING_VALUES * wide
    per_token = model.blocks * END_VALUES * model.token_dim * wide + working
    if config.execution.checkpoint_activations:
        per_token += layers * model.channels * wide + kept  # inputs, and one layer at a time
    else:
        per_token += layers * kept
    read = model.tokens + max(model.prefix(block) for block in range(model.blocks))
    return Memory(state * wide, copies, micro * read * per_token)


@dataclass(frozen=True)
class Accelerator:
    """A device for rent: dense peak rates and bandwidths."""

    flops: dict[str, float]  # peak FLOPs per second by precision
    memory: float  # bytes
    bandwidth: float  # bytes per second of its memory
    link: float  # bytes per second to the other devices of a node, in each direction


# Dense peaks and bandwidths from the vendors' data sheets: links are NVLink if the device has it,
# else PCIe, at half of a two-way figure.
ACCELERATORS = {
    "H200": Accelerator({"float32": 67e12, "bfloat16": 989e12}, 141e9, 4.8e12, 450e9),
    "H100": Accelerator({"float32": 67e12, "bfloat16": 989e12}, 80e9, 3.35e12, 450e9),
    "A100": Accelerator({"float32": 19.5e12, "bfloat16": 312e12}, 80e9, 2.0e12, 300e9),
    "L40S": Accelerator({"float32": 91.6e12, "bfloat16": 362e12}, 48e9, 864e9, 32e9),
    "L4": Accelerator({"float32": 30.3e12, "bfloat16": 121e12}, 24e9, 300e9, 32e9),
    "A10G": Accelerator({"float32": 31.2e12, "bfloat16": 70e12}, 24e9, 600e9, 32e9),
    "T4": Accelerator({"float32": 8.1e12, "bfloat16": 8.1e12}, 16e9, 320e9, 16e9),
}

# List prices: round figures for one device on demand, in US dollars per hour. They differ by
# vendor and region, so plans name their date, and a file of the user overrides them.
PRICES_DATE = "November 2026"
PRICES = {
    **{"H200": 4.0, "H100": 3.0, "A100": 2.0, "L40S": 1.5},
    **{"L4": 0.7, "A10G": 1.0, "T4": 0.4},
}
CORE = "core"  # name of a processor core in a file of prices


def own_prices() -> dict[str, float]:
    """Return the user's prices in US dollars per device-hour, by device: those of $TARFLOW_PRICES.

    The variable names a YAML file with lines such as `H100: 2.5` or `core: 0.04`.

    Raises:
        ConfigError: If the file is missing, names an unknown device, or has no positive price.
    """
    name = os.environ.get("TARFLOW_PRICES")
    if not name:
        return {}
    try:
        prices = strict_yaml.parse(Path(name).read_text(), name)
    except OSError as error:
        reason = error.strerror
        raise ConfigError(f"TARFLOW_PRICES names {name}, which cannot be read: {reason}") from None
    known = (*PRICES, CORE)
    for device, price in prices.items() if isinstance(prices, dict) else [(prices, None)]:
        if device not in known:
            raise ConfigError(f"{name}: {device} is no device; write one of {', '.join(known)}")
        if not isinstance(price, int | float) or not 0 < price < math.inf:
            raise ConfigError(f"{name}: {device} is {price}; write US dollars per hour, above 0")
    return {device: float(price) for device, price in prices.items()}


@dataclass(frozen=True)
class Price:
    """What a device costs, and how that is known."""

    hourly: float  # US dollars per device-hour
    basis: str


def price_of(accelerator: str) -> Price:
    """Return the price of an accelerator: the user's, or else listed.

    Raises:
        ConfigError: As `own_prices`.
    """
    if own := own_prices().get(accelerator):
        return Price(own, "your price")
    return Price(PRICES[accelerator], f"list price of {PRICES_DATE}")
