"""What a run costs before it is run: parameters, FLOPs, memory, seconds and money.

Legend: `T` tokens per image, `D` values per token, `C` channels.
FLOPs count the matrix products of training and ideal causal attention, `T(T+1)/2` pairs,
with the backward pass as twice the forward, whatever kernel runs.
"""

from dataclasses import dataclass

from tarflow.config import ModelConfig, RunConfig


def outputs_per_token(model: ModelConfig) -> int:
    """Values the last projection gives per token: scale and shift, or shift only."""
    return model.token_dim * (1 if model.volume_preserving else 2)


def params(model: ModelConfig) -> int:
    """Count matrix-product weights, the `N` of the scaling laws."""
    layer = 12 * model.channels**2
    ends = model.token_dim * model.channels + model.channels * outputs_per_token(model)
    return model.blocks * (model.layers * layer + ends)


def params_total(model: ModelConfig) -> int:
    """Count every trained value: weights, biases, norms, position and class tables."""
    layer = 12 * model.channels**2 + 13 * model.channels
    ends = (
        (model.token_dim + 1) * model.channels
        + (model.channels + 1) * outputs_per_token(model)
        + (model.tokens + model.classes) * model.channels
    )
    return model.blocks * (model.layers * layer + ends)


def forward_flops(model: ModelConfig) -> int:
    """Count the FLOPs of one forward pass of one image."""
    attention = 2 * model.channels * model.tokens * (model.tokens + 1)
    return 2 * params(model) * model.tokens + model.blocks * model.layers * attention


def training_flops(model: ModelConfig) -> int:
    """Count the FLOPs of one training image: forward, and backward at twice the forward."""
    return 3 * forward_flops(model)


def run_flops(config: RunConfig) -> float:
    """Count the training FLOPs of a whole run."""
    return float(training_flops(config.model)) * config.images


BYTES = {"float32": 4, "bfloat16": 4, "float64": 8}  # master weights stay float32 under bfloat16
ACTIVATIONS_PER_LAYER = 34  # values of width C kept per token and layer for the backward pass


@dataclass(frozen=True)
class Memory:
    """Bytes a worker holds while training."""

    state: int  # weights, gradients, two moments, weight average
    activations: int  # kept for the backward pass of one micro-batch

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.activations


def memory(config: RunConfig) -> Memory:
    """Estimate the memory of one data-parallel worker."""
    size = BYTES.get(config.precision, 4)
    state = params_total(config.model) * size * (5 if config.optim.ema else 4)
    share = -(-config.batch // config.execution.workers)
    micro = min(share, config.execution.micro_batch or share)
    kept = 2 if config.precision == "bfloat16" else size
    per_token = config.model.blocks * (
        config.model.layers * ACTIVATIONS_PER_LAYER * config.model.channels
        + 8 * config.model.token_dim
    )
    return Memory(state, micro * config.model.tokens * per_token * kept)


@dataclass(frozen=True)
class Accelerator:
    """A device one can rent: dense peak rates and a list price."""

    flops: dict[str, float]  # peak FLOPs per second by precision
    memory: float  # bytes
    price: float  # US dollars per device-hour, on demand


# Dense peaks from the vendors' data sheets; prices are round on-demand figures and only a default.
ACCELERATORS = {
    "H200": Accelerator({"float32": 67e12, "bfloat16": 989e12}, 141e9, 4.0),
    "H100": Accelerator({"float32": 67e12, "bfloat16": 989e12}, 80e9, 3.0),
    "A100": Accelerator({"float32": 19.5e12, "bfloat16": 312e12}, 80e9, 2.0),
    "L40S": Accelerator({"float32": 91.6e12, "bfloat16": 362e12}, 48e9, 1.5),
    "L4": Accelerator({"float32": 30.3e12, "bfloat16": 121e12}, 24e9, 0.7),
    "A10G": Accelerator({"float32": 31.2e12, "bfloat16": 70e12}, 24e9, 1.0),
    "T4": Accelerator({"float32": 8.1e12, "bfloat16": 8.1e12}, 16e9, 0.4),
}
