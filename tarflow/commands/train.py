"""`python -m tarflow train`: one run from a config file."""

import logging
import signal
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tarflow import human
from tarflow.commands.flags import Changes, RunFlags, Tags, flat, split_tags
from tarflow.config import RunConfig
from tarflow.config_files import from_dict, read_plain
from tarflow.errors import UserError
from tarflow.identity import run_id
from tarflow.override import override
from tarflow.storage import locate


def train(
    config: Annotated[Path, tyro.conf.Positional],
    /,
    out: Path | None = None,
    tracker: Literal["tensorboard", "wandb", "mlflow", "trackio"] | None = None,
    *,
    changes: Changes = (),
    tags: Tags = (),
    fields: RunFlags = {},  # noqa: B006 tyro needs a value, and nothing changes it
) -> int:
    """Train the run that a YAML file describes, then score and sample the result.

    To resume after an interruption, run the same command again. If forecasts.parquet beside the
    config has a forecast of this run, as it has for best.yaml of a study, the expected value is
    printed first, and what came out is written beside it.
    Example: python -m tarflow train studies/digits/best.yaml

    Any field of the config may be changed for this run, which then has another name:
    python -m tarflow train best.yaml --optim.lr 0.02 --model.channels 64

    Several workers on one machine share the run and leave the same folder:
    torchrun --standalone --nproc-per-node 2 -m tarflow train studies/digits/best.yaml

    Args:
        config: Config file, such as best.yaml of a study.
        out: Folder of the run; by default runs/RUN_ID.
        tracker: Also show the run in TensorBoard, Weights & Biases, MLflow or Trackio, while it
            trains too.
        changes: Change fields of the config, such as --set optim.lr=0.02 batch=32.
        tags: Word to find the run by, kept in its row.
        fields: Fields of the config to change.
    """
    from rich.console import Console

    from tarflow import distributed
    from tarflow.forecasts import forecast_of, write_outcome
    from tarflow.mirror.mirror import Mirror, mirroring
    from tarflow.record import read_result
    from tarflow.run import resolve_config, run
    from tarflow.train.preemption import Preempted

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    file = locate(config)
    study, plain = file.parent, read_plain(file)
    if isinstance(plain, dict) and plain.keys() & {"preset", "sizes"}:
        raise UserError(f"{config} is a study, not one run: python sweeps/scaling.py {config}")
    asked = override(from_dict(RunConfig, plain, where=str(file)), flat(changes, fields))
    chosen = resolve_config(asked)
    folder = locate(out) if out else Path("runs") / run_id(chosen)

    def report(progress: dict[str, Any]) -> None:
        share = progress["images"] / chosen.images
        left = progress["seconds"] * (1 / share - 1)
        console.print(
            f"{share:4.0%}  {progress['images']:,} images  loss {progress['loss']:.4f}  "
            f"{left:.0f} s of training left"
        )

    log, handler = logging.getLogger("tarflow"), logging.StreamHandler()
    log.setLevel(logging.INFO)  # how the run is executed, and why
    log.addHandler(handler)
    try:
        with distributed.process_group():
            mirror = None
            if tracker and distributed.rank() == 0:  # before the training, as it may be missing
                mirror = Mirror(tracker, folder.absolute().parent, only=folder)
            if distributed.rank() == 0 and (forecast := forecast_of(study, run_id(chosen))):
                console.print(forecast.in_words, soft_wrap=True)
            before = read_result(folder)
            with mirroring(mirror, partial(console.print, soft_wrap=True)):
                row = run(chosen, folder, role="final", report=report, tags=split_tags(tags))
    except Preempted:
        console.print("told to end: the state is saved; run the same command again to resume")
        return 128 + signal.SIGTERM
    finally:
        log.removeHandler(handler)
    if row.get("status") == "failed":
        console.print(f"failed: {row['error']} (details in {folder}/error.txt)")
        return 1
    if row:
        if before and before["run"]["status"] == "done":
            console.print("trained already; name another folder with --out to train it anew")
        print(
            f"{folder}: {row['bpd']:.4f} ± {row['bpd_se']:.4f} {human.bits_unit(row['bpd_kind'])} "
            f"({row['bpd_kind']}, {row['split']} images)"
        )
        if compared := write_outcome(study, row):
            print(compared.verdict)
    return 0
