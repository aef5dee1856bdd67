"""How a run is executed on this machine, resolved once, with the reason for each choice.

None of it changes what a run is: the same config gives the same numbers up to rounding, whatever
the device, the number of workers or the kernels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from tarflow import cost, distributed
from tarflow.config import Precision, RunConfig
from tarflow.cpu.kernels import kernels as compiled_kernels
from tarflow.cuda_graph import supports_cuda_graphs
from tarflow.device import (
    DTYPES,
    check_compiler,
    choose_device,
    describe_device,
    memory_bytes,
    supports_triton,
)
from tarflow.errors import ConfigError

SET = "set in the config"  # a reason
WIDE = 64  # channels from which bfloat16 pays on a CPU that multiplies in it


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Everything about a run that depends on the machine."""

    device: torch.device  # of this worker
    precision: str  # of the matrix products: float32, bfloat16 or float64
    dtype: torch.dtype  # of weights and sums: float32, or float64 when all arithmetic is
    first: bool  # whether this worker is the first one, which writes the files
    workers: int  # data-parallel processes
    sharded: bool  # whether the workers divide the training state among them (FSDP)
    micro_batch: int  # images per forward pass and worker; at first the most that may be tried
    kernels: str  # fused: compiled for this device; compile: torch.compile; eager: plain PyTorch
    residuals: str  # type in which the hidden states are summed: float32, bfloat16 or float64
    threads: int  # CPU threads of each worker
    cuda_graphs: bool  # whether steps are captured and replayed
    reasons: Mapping[str, str]  # why, by the name of the choice

    def __str__(self) -> str:
        values = {
            "device": f"{self.device.type}, {describe_device(self.device)}",
            "precision": self.precision,
            "workers": str(self.workers),
            "state": "sharded" if self.sharded else "replicated",
            "micro-batch": f"{self.micro_batch} images",
            "kernels": self.kernels,
            "residuals": self.residuals,
            "threads": str(self.threads),
        }
        width = max(map(len, values.values()))
        return "\n".join(
            f"{name:<13}{value:<{width}}  {self.reasons.get(name, '')}".rstrip()
            for name, value in values.items()
        )


def resolve_execution(config: RunConfig) -> Execution:
    """Choose how to execute a run; every worker must call this.

    The micro-batch is what the config asks for, or else a whole share of the batch, which
    `train.micro_batch.fit_micro_batch` lowers until memory suffices.

    Args:
        config: Run whose precision and data hash are resolved.

    Raises:
        UserError: If CUDA is asked for and absent, or layers cannot be compiled here.
        ConfigError: If the state must be sharded and the optimizer needs whole matrices.
    """
    rank, workers = distributed.rank(), distributed.world_size()
    device = choose_device(config.execution)
    own_memory = memory_bytes(device, workers)
    memory = distributed.least(own_memory, device)
    config = replace(config, execution=replace(config.execution, workers=workers))
    sharded, computed = cost.sharded(config, memory), cost.micro_batch(config, memory)
    if sharded and config.optim.optimizer == "muon":
        raise ConfigError(
            "muon needs whole matrices on every worker: set optim.optimizer to adamw, or "
            "execution.sharding to replicate"
        )
    micro_batch, why_micro_batch = _choose_micro_batch(config, sharded, computed)
    kernels, why_kernels = _choose_kernels(config, device, sharded)
    residuals, why_residuals = _choose_residuals(config, device, kernels)
    return Execution(
        device=device,
        precision=config.precision,
        dtype=torch.float64 if config.precision == "float64" else torch.float32,
        first=rank == 0,
        workers=workers,
        sharded=sharded,
        micro_batch=micro_batch,
        kernels=kernels,
        residuals=residuals,
        threads=torch.get_num_threads(),
        cuda_graphs=supports_cuda_graphs(device) and not sharded,
        reasons={
            "device": _why_device(config, device),
            "precision": _why_precision(config, device),
            "state": _why_sharded(config, sharded),
            "micro-batch": why_micro_batch,
            "kernels": why_kernels,
            "residuals": why_residuals,
            "threads": SET if config.execution.threads else "as PyTorch chooses",
        },
    )


def choose_precision(device: torch.device, config: RunConfig) -> tuple[Precision, str]:
    """Return the precision that `auto` stands for on a device, and why.

    Uniform noise needs float32 on every device (`RunConfig.accelerator_precision`). Otherwise a
    CPU trains faster in bfloat16 if it multiplies in it (AVX512-BF16, as all CPUs with matrix
    units do) and the products are wide enough to make up for the conversions
    (`benchmarks/README.md`).
    """
    if config.accelerator_precision == "float32":
        return "float32", "bfloat16 can cost bits per dimension with uniform noise"
    if device.type == "cuda":
        return "bfloat16", "matrix units multiply fastest in it"
    if not torch.cpu.get_capabilities().get("avx512_bf16", False):
        return "float32", "this CPU does not multiply in bfloat16"
    if config.model.channels < WIDE:
        return "float32", f"below {WIDE} channels conversions to bfloat16 cost more than they save"
    return "bfloat16", "this CPU multiplies in bfloat16"


def _choose_micro_batch(config: RunConfig, sharded: bool, computed: int) -> tuple[int, str]:
    share = -(-config.batch // config.execution.workers)
    if config.execution.micro_batch:
        return min(share, config.execution.micro_batch), SET
    if sharded:
        return computed, "computed to fit in memory beside a shard of the state"
    return share, "a worker's whole share of the batch fits"


def _choose_kernels(config: RunConfig, device: torch.device, sharded: bool) -> tuple[str, str]:
    """Choose the kernels of the Transformer layers.

    Fused kernels serve neither a sharded state, nor float64, nor rotary positions on a GPU.
    """
    why = "the state is sharded" if sharded else "execution.compile is off"
    if config.execution.fused and not sharded:
        if config.precision == "float64":
            why = "there are none for float64"
        elif device.type == "cuda":
            if config.model.positions == "rope":
                why = "there are none for rotary positions on a GPU"
            elif supports_triton(device):
                return "fused", "compiled for this GPU by Triton"
            why = "Triton is missing, or this GPU is too old for it"
        elif compiled_kernels(DTYPES[config.precision]):
            return "fused", "compiled for this CPU by g++"
        else:
            why = "g++ is missing or failed"
    if config.execution.compile:
        check_compiler()
        return "compile", SET
    return "eager", why


def _choose_residuals(config: RunConfig, device: torch.device, kernels: str) -> tuple[str, str]:
    """Choose the type in which the hidden states between the layers are summed."""
    if config.precision == "float64":
        return "float64", "so is all arithmetic"
    if device.type != "cuda" or kernels != "fused" or config.precision != "bfloat16":
        return "float32", "only fused GPU layers in bfloat16 can do otherwise"
    if config.execution.residuals != "auto":
        return config.execution.residuals, SET
    return "bfloat16", "halves what norms read and write, at no measured cost in bits"


def _why_device(config: RunConfig, device: torch.device) -> str:
    if config.execution.device != "auto":
        return SET
    return "this machine has CUDA" if device.type == "cuda" else "no CUDA device here"


def _why_precision(config: RunConfig, device: torch.device) -> str:
    automatic, why = choose_precision(device, config)
    return why if automatic == config.precision else SET


def _why_sharded(config: RunConfig, sharded: bool) -> str:
    if config.execution.workers == 1:
        return "a single worker holds it all"
    if config.execution.sharding != "auto":
        return SET
    return "one device cannot hold it all" if sharded else "one device can hold it all"
