"""`python -m tarflow calibrate`: measure the fastest way to sample from a model here."""

from typing import Literal

from rich.table import Column

from tarflow import human
from tarflow.commands.checkpoint import NO_FLAGS, Checkpoint, Flags, load
from tarflow.commands.table import print_table
from tarflow.errors import check_counts, check_flags
from tarflow.sample.plan import PLAN, Plan, keep_plan
from tarflow.storage import locate_model

MEASUREMENTS = ("guess", "time", "seq. time", "passes", "CRM %", "IGM")
KEY = """\
solver: how the block is inverted; sequential is token by token, jacobi solves all tokens at once,
  segmented:N a sliding window of one Nth of them
guess: what iteration starts from, the latents or zeros
time, seq. time: seconds of the chosen solver and of sequential decoding, for one batch
passes: iterations that the chosen solver took; none if it is sequential
CRM %: convergence ranking metric, how hard the block is to iterate; all blocks sum to 100
IGM: initial guessing metric, the error left after one iteration from the latents / from zeros"""


def calibrate(
    checkpoint: Checkpoint,
    /,
    batch: int = 64,
    tolerance: float | None = None,
    precision: Literal["float32", "float16", "bfloat16"] = "float32",
    sampling: Flags = NO_FLAGS,
) -> int:
    """Measure which solver inverts each block fastest on this machine, and keep the plan.

    The plan is written to plan.json beside the checkpoint. `sample` and `evaluate` use it on the
    same device with the same batch size, precision and guidance.

    Args:
        checkpoint: Folder of a run or of a release, or its file model.safetensors.
        batch: Images to draw at a time.
        tolerance: Largest error of a pixel in [-1, 1] units; by default a tenth of the training
            noise, or half a grey level for uniform noise.
        precision: Precision of the matrix products.
        sampling: Sampler settings; a plan holds for one guidance, with or without denoising.
    """
    from tarflow.device import autocast
    from tarflow.sample import calibration

    check_flags(tolerance=tolerance)
    check_counts(batch=batch)
    flow, config = load(checkpoint, sampling)
    images, labels = calibration.calibration_images(flow, config, batch)
    with autocast(precision, flow.var.device):
        plan = calibration.calibrate(flow, images, labels, config.noise, config.sampler, tolerance)
    path = locate_model(checkpoint).parent / PLAN
    keep_plan(path, plan)
    _print_plan(plan, len(images))
    print(f"kept in {path}")
    return 0


def _print_plan(plan: Plan, batch: int) -> None:
    blocks = list(enumerate(zip(plan.methods, plan.measured, strict=True)))
    print_table(
        f"batches of {batch}, noise side first",
        ("block", Column("solver", no_wrap=True), *MEASUREMENTS),
        (
            (
                str(index),
                str(method),
                method.guess if method.segments else "",
                f"{block.seconds:.3f}",
                f"{block.sequential_seconds:.3f}",
                str(block.iterations or ""),
                f"{block.crm:.1f}",
                f"{block.igm_latents:.2f} / {block.igm_zeros:.2f}",
            )
            for index, (method, block) in reversed(blocks)
        ),
    )
    print(KEY)
    planned = sum(block.seconds for block in plan.measured)
    sequential = sum(block.sequential_seconds for block in plan.measured)
    print(
        f"{human.digits(batch / planned)} images per second, {sequential / planned:.2f} times as "
        f"fast as sequential decoding; 1,000 images take {human.seconds(plan.seconds(1000))}"
    )
    print(
        f"a batch takes {human.seconds(planned)}, one parallel pass "
        f"{human.seconds(plan.forward_seconds)}; largest error of a pixel {plan.error:.1e}"
    )
