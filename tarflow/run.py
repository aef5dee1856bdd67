"""One run from its config to a complete folder: train, score, sample, compare, record.

The same function for the command line, a Ray Tune trial and the workers of a Ray Train job.
"""

import json
import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tarflow import cost, data
from tarflow.config import RunConfig
from tarflow.config_files import to_dict, to_yaml
from tarflow.device import choose_device, peak_flops
from tarflow.errors import UserError
from tarflow.evaluate.features import find_extractor
from tarflow.evaluate.held_out import Likelihood, held_out_likelihood
from tarflow.evaluate.sample_quality import evaluate_samples
from tarflow.execution import choose_precision, resolve_execution
from tarflow.identity import run_id
from tarflow.latent.autoencoder import autoencoder_of
from tarflow.model.weights import build, save_model
from tarflow.previews import Previews
from tarflow.record import (
    IMAGES,
    STARTED,
    environment,
    read_json,
    read_result,
    write_json,
    write_result,
    write_table,
    write_text,
)
from tarflow.train.checkpoint import remove_checkpoint, remove_checkpoints
from tarflow.train.curve import CurveFile
from tarflow.train.interruptions import interruption_columns
from tarflow.train.loop import Report, train
from tarflow.train.schedule import shared_images
from tarflow.train.state import TrainState
from tarflow.train.step import Diverged
from tarflow.train.trunk import Trunk


def resolve_config(config: RunConfig) -> RunConfig:
    """Fill in what depends on the data and the machine, so that the run has a name.

    Raises:
        UserError: If there is no such data set, its images do not fit the model, or too few of
            them are held out.
    """
    config = data.match_data(config)
    evaluation = config.evaluation
    evaluation.check_held_out(getattr(data.describe(config.data), evaluation.split))
    if config.precision == "auto":
        precision, _ = choose_precision(choose_device(config.execution), config)
        config = replace(config, precision=precision)
    return config


def run(
    config: RunConfig,
    folder: Path,
    role: str = "grid",
    label: str = "",
    report: Report = lambda _: None,
    trunk: Trunk | None = None,
    tags: Sequence[str] = (),
    after_step: Callable[[TrainState], None] | None = None,
) -> dict[str, Any]:
    """Train, score and sample a run, resuming it if it was interrupted; leave its folder complete.

    A run that is already done is returned as it is. Every worker of a data-parallel job calls
    this, since scoring and sampling are shared as well; the first one writes.

    Args:
        config: Run whose precision and data hash are resolved.
        folder: Folder of the run.
        role: grid, ablation, search or final; a grid run that starts from a trunk is a branch.
        label: What differs from its neighbours, for people.
        report: Receives progress; see `train.loop.train`.
        trunk: Trunk of the run's family, or None if it shares nothing.
        tags: Words to find its row by; a run that is done already keeps its own.
        after_step: Looks at the training state after each step, on all workers.

    Returns:
        The row of `runs.parquet`; its status is `failed` if training diverged, also if only the
        scores show that. It is empty on all workers but the first.

    Raises:
        UserError: If the folder holds another run.
    """
    result = read_result(folder)
    before = result["run"] if result else read_json(folder / STARTED)
    if before and before["run_id"] != run_id(config):
        raise UserError(
            f"{folder} holds another run, {before['run_id']}; this is {run_id(config)}: "
            "name another folder with --out, or delete that one"
        )
    if result and result["run"]["status"] == "done":
        row: dict[str, Any] = result["run"]
        return row
    started = datetime.now(UTC)
    execution = resolve_execution(config)
    if execution.first:
        write_text(folder / "config.yaml", to_yaml(config))
        write_text(folder / "execution.txt", f"{execution}\n")
        write_json(folder / STARTED, row_of(config, role, label, tags))
        (folder / "error.txt").unlink(missing_ok=True)
    extractor, autoencoder = None, None
    if config.evaluation.samples:  # fails before the training if weights are missing
        extractor = find_extractor(
            config.evaluation.features, device=execution.device.type, data=config.data
        )
        autoencoder = autoencoder_of(config.data, config.evaluation.autoencoder, execution.device)
    try:
        previews = Previews(config, folder, execution, autoencoder)
        curve = CurveFile(folder, execution.first)

        def look(state: TrainState) -> None:
            previews(state)
            curve(state)
            if after_step:
                after_step(state)

        state = train(config, folder, report, trunk, execution, look)
        if execution.first:
            curve.write(state)
            latents = data.latent_space(config.data)
            save_model(folder / "model.safetensors", state.ema, config, latents)
        flow = build(config.model, state.ema).to(execution.device).requires_grad_(False)
        evaluating = time.perf_counter()
        scores = held_out_likelihood(flow, config)
        if not math.isfinite(scores.bpd.mean()):  # the last step has spoilt the weights
            raise Diverged(f"held-out images have no finite score after {config.images} images")
    except Diverged as error:
        if not execution.first:
            return {}
        return record_failure(config, folder, role, label, error, tags=tags)
    evaluations = []
    if extractor:
        evaluations += evaluate_samples(
            flow, config, extractor, autoencoder, folder / "samples.png"
        )
    if not execution.first:
        return {}
    write_table(folder / "images.parquet", image_rows(scores), IMAGES)
    evaluate_seconds = time.perf_counter() - evaluating

    devices = 1 if execution.device.type != "cpu" else max(1, config.execution.threads)
    peak = peak_flops(execution.device, config.precision) * execution.workers
    wall_seconds = state.seconds - state.inherited_seconds + evaluate_seconds
    row = row_of(config, role, label, tags) | {
        "status": "done",
        "started": started.isoformat(timespec="seconds"),
        "train_seconds": state.seconds,
        "evaluate_seconds": evaluate_seconds,
        "wall_seconds": wall_seconds,
        "device_seconds": wall_seconds * devices * execution.workers,
        **interruption_columns(folder, devices),
        "mfu": cost.run_flops(config) / state.seconds / peak,
        "kernels": execution.kernels,
        **scores.columns(),
    }
    if trunk and state.inherited:
        own = config.images - state.inherited
        row |= {
            "role": "branch" if role == "grid" else role,
            "parent_id": trunk.run_id,
            "flops_marginal": float(cost.training_flops(config.model)) * own,
        }
    write_result(folder, row, evaluations)
    remove_checkpoints(folder / "state")
    if trunk:  # no other run branches off there
        remove_checkpoint(trunk.folder, shared_images(config))
    return row


def image_rows(scores: Likelihood) -> list[dict[str, Any]]:
    """Return the rows of `images.parquet`."""
    columns = zip(scores.labels, scores.bpd, scores.loss, strict=True)
    return [
        {"index": index, "label": int(label), "bpd": float(bpd), "loss": float(loss)}
        for index, (label, bpd, loss) in enumerate(columns)
    ]


def row_of(config: RunConfig, role: str, label: str, tags: Sequence[str] = ()) -> dict[str, Any]:
    """Return the columns of a run's row that follow from its config and the code."""
    model, unique = config.model, data.describe(config.data).train
    flops = cost.run_flops(config)
    return {
        "run_id": run_id(config),
        "label": label
        or f"c{model.channels}-b{model.blocks}-l{model.layer_split or model.layers}",
        "role": role,
        "config": json.dumps(to_dict(config)),
        "data": config.data.name,
        "data_hash": config.data.hash,
        "classes": model.classes,
        "patch": model.patch,
        "channels": model.channels,
        "blocks": model.blocks,
        "layers": model.mean_layers,
        "layer_split": model.layer_split or None,
        "total_layers": model.total_layers,
        "head_dim": model.head_dim,
        "lr": config.optim.lr,
        "batch": config.batch,
        "noise_type": config.noise.type,
        "noise_std": config.noise.std if config.noise.type == "gaussian" else None,
        "precision": config.precision,
        "schedule": config.optim.schedule,
        "seed": config.seed,
        "params": cost.params(model),
        "params_total": cost.params_total(model),
        "images": config.images,
        "unique_images": min(unique, config.images),
        "epochs": config.images / unique,
        "tokens": config.images * model.tokens,
        "flops": flops,
        "flops_marginal": flops,
        "split": config.evaluation.split,
        "numerics_version": config.numerics_version,
        "tags": ", ".join(tags),
        **environment(),
    }


def record_failure(
    config: RunConfig,
    folder: Path,
    role: str,
    label: str,
    error: BaseException,
    host: str = "",
    tags: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the row of a run that failed, on this host or another, and its `error.txt`."""
    message = f"{type(error).__name__}: {error}".splitlines()[0]
    row = row_of(config, role, label, tags) | {"status": "failed", "error": message}
    row["host"] = host or row["host"]
    write_text(folder / "error.txt", "".join(traceback.format_exception(error)))
    write_result(folder, row)
    return row
