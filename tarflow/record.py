"""The tables of runs: schemas, atomic writing, and reading that checks the version.

`result.json` in the folder of a run is the original; `runs.parquet` and `evaluations.parquet` of a
study gather these files and can be rebuilt at any time.
"""

import contextlib
import json
import os
import platform
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tarflow.errors import UserError
from tarflow.storage import Remote, writing

SCHEMA_VERSION = "1"
METADATA = {"schema_version": SCHEMA_VERSION}  # of every table
STARTED = "started.json"  # in the folder of a run that has not ended: what is known of its row

RUNS = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),  # hash of the config
        pa.field("label", pa.string(), nullable=False),  # what sets it apart, for readers
        pa.field("role", pa.string(), nullable=False),  # grid, branch, ablation, search or final
        pa.field("status", pa.string(), nullable=False),  # done, failed, or pruned by a search
        ("parent_id", pa.string()),  # run id of the trunk that it continued
        ("config", pa.string()),  # the whole config as JSON
        ("data", pa.string()),
        ("data_hash", pa.string()),
        ("classes", pa.int32()),
        ("patch", pa.int32()),
        ("channels", pa.int32()),
        ("blocks", pa.int32()),
        ("layers", pa.int32()),  # in each block; the rounded mean if they differ
        ("layer_split", pa.string()),  # layers of each block, such as 1-1-1-13, if they differ
        ("total_layers", pa.int32()),  # in all blocks, the depth of a law of shapes
        ("head_dim", pa.int32()),
        ("lr", pa.float64()),
        ("batch", pa.int32()),
        ("noise_type", pa.string()),
        ("noise_std", pa.float64()),  # [-1, 1] units
        ("precision", pa.string()),
        ("schedule", pa.string()),
        ("seed", pa.int32()),
        ("params", pa.int64()),  # weights of matrix products, N
        ("params_total", pa.int64()),
        ("images", pa.int64()),  # training images seen
        ("unique_images", pa.int64()),
        ("epochs", pa.float64()),
        ("tokens", pa.int64()),  # images * T
        ("flops", pa.float64()),  # training FLOPs by formula
        ("flops_marginal", pa.float64()),  # without those of a trunk
        ("wall_seconds", pa.float64()),  # training and evaluation, without a trunk
        ("train_seconds", pa.float64()),  # training, with a trunk
        ("evaluate_seconds", pa.float64()),  # likelihood, samples and their scores
        ("device_seconds", pa.float64()),  # wall_seconds * devices (CPU: threads)
        ("preemptions", pa.int32()),  # told to leave, with its state saved
        ("lost_processes", pa.int32()),  # ended without notice
        ("lost_machines", pa.int32()),  # gone without notice
        ("lost_seconds", pa.float64()),  # device-seconds that these have cost, on top of the rest
        ("mfu", pa.float64()),  # share of the peak rate, with causal attention
        ("loss", pa.float64()),  # held-out, nats per dimension without the Gaussian constant
        ("train_loss", pa.float64()),  # the same quantity on training images
        ("bpd", pa.float64()),  # bits per dimension of the clean 8-bit image, or of the latent
        ("bpd_kind", pa.string()),  # dequantised, bound or latent
        ("bpd_se", pa.float64()),  # standard error over images
        ("bpd_median", pa.float64()),
        ("bpd_p99", pa.float64()),
        ("bpd_max", pa.float64()),
        ("bpd_leave_one_out", pa.float64()),  # largest change of bpd if one image is left out
        ("split", pa.string()),  # validation; test for a final run of earlier releases
        ("started", pa.string()),  # ISO 8601, UTC
        ("numerics_version", pa.int32()),
        ("versions", pa.string()),  # packages, JSON
        ("kernels", pa.string()),  # kernels that trained it: fused, compile or eager
        ("git", pa.string()),
        ("host", pa.string()),
        ("error", pa.string()),
        ("tags", pa.string()),  # of --tag, with commas between them
    ],
    metadata=METADATA,
)

EVALUATIONS = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        ("guidance", pa.float64()),
        ("part", pa.string()),  # both, scale or shift
        ("annealed", pa.bool_()),
        ("rule", pa.string()),  # of guidance
        ("guided_blocks", pa.string()),  # all, or top:N
        ("temperature", pa.float64()),
        ("denoise", pa.float64()),
        ("solver", pa.string()),  # of each block, the noise side first
        ("seed", pa.int32()),
        ("half", pa.string()),  # all draws; or the half that chose, or that scored what was chosen
        ("n", pa.int64()),  # samples
        ("n_reference", pa.int64()),
        ("reference", pa.string()),  # which images, e.g. digits/validation
        ("autoencoder", pa.string()),  # what decoded the samples: name and hash; null for pixels
        ("feature_extractor", pa.string()),
        ("kid", pa.float64()),
        ("kid_se", pa.float64()),
        ("fid", pa.float64()),  # only with Inception features
        ("fd", pa.float64()),  # Frechet distance with any other extractor
        ("fd_infinity", pa.float64()),  # extrapolated to infinitely many samples, any extractor
        ("fd_infinity_se", pa.float64()),
        ("inception_score", pa.float64()),
        ("inception_score_se", pa.float64()),
        ("precision", pa.float64()),
        ("recall", pa.float64()),
        ("seconds_per_image", pa.float64()),
        ("redrawn", pa.int64()),  # samples that were not finite and were drawn again
        ("lost", pa.int64()),  # samples given up, over all halves
    ],
    metadata=METADATA,
)

CURVE = pa.schema(
    [
        pa.field("images", pa.int64(), nullable=False),
        ("flops", pa.float64()),
        ("loss", pa.float64()),  # mean training loss since the row before
        ("lr", pa.float64()),
        ("grad_norm", pa.float64()),
        ("seconds", pa.float64()),  # since the run began, without pauses
    ],
    metadata=METADATA,
)

PREVIEWS = pa.schema(
    [
        pa.field("images", pa.int64(), nullable=False),
        ("seconds", pa.float64()),  # since the run began, without pauses
        ("loss", pa.float64()),  # of validation images, under the weight average
        ("samples", pa.binary()),  # PNG of a row of samples, of the same noise in every row
    ],
    metadata=METADATA,
)

IMAGES = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),  # within the split
        ("label", pa.int64()),
        ("bpd", pa.float64()),
        ("loss", pa.float64()),
    ],
    metadata=METADATA,
)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path, whose file replaces `path` once the block succeeds.

    A local file is renamed; an object store receives it with one put.

    Raises:
        UserError: If the file cannot be written; the old one stays intact.
    """
    if isinstance(path, Remote):
        with tempfile.TemporaryDirectory(prefix="tarflow-") as folder:
            temporary = Path(folder) / path.name
            yield temporary
            path.write_bytes(temporary.read_bytes())
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, plain: Any) -> None:
    """Write a JSON file atomically; numbers that are not finite become null."""
    write_text(path, json.dumps(_finite(plain), indent=1, allow_nan=False) + "\n")


def _finite(plain: Any) -> Any:
    if isinstance(plain, Mapping):
        return {str(key): _finite(value) for key, value in plain.items()}
    if isinstance(plain, list | tuple):
        return [_finite(value) for value in plain]
    if isinstance(plain, float) and (plain != plain or plain in (float("inf"), float("-inf"))):
        return None
    return plain


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write rows as Parquet, atomically; refuse keys that the schema lacks."""
    rows = list(rows)
    unknown = {key for row in rows for key in row} - set(schema.names)
    if unknown:
        raise ValueError(f"no such column: {', '.join(sorted(unknown))}")
    table = pa.Table.from_pylist([_finite(row) for row in rows], schema=schema)
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def read_table(path: Path) -> pa.Table:
    """Read a table of this schema version; one of an older release may lack columns.

    Raises:
        UserError: If the file is missing, is not Parquet, or has another version.
    """
    try:
        table = pq.ParquetFile(pa.BufferReader(path.read_bytes())).read()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    stored = (table.schema.metadata or {}).get(b"schema_version", b"none").decode()
    if stored != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {stored}, this program reads {SCHEMA_VERSION}; "
            "rebuild it from its runs/ folder or read it with the release that wrote it"
        )
    return table


def read_result(run_folder: Path) -> dict[str, Any] | None:
    """Return `{"run": row, "evaluations": rows}` from result.json, or None if it is missing."""
    result: dict[str, Any] | None = read_json(run_folder / "result.json")
    return result


def write_result(
    run_folder: Path, row: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write `result.json` of a run that has ended, which replaces what was known before."""
    write_json(run_folder / "result.json", {"run": row, "evaluations": list(evaluations)})
    (run_folder / STARTED).unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None if it is missing or incomplete."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def gather(study: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rebuild `runs.parquet` and `evaluations.parquet` of a study from its runs/ folder.

    The evaluations/ folder of a run holds settings that were evaluated later, a file each.

    Returns:
        The rows of both tables, ordered by run id.
    """
    runs, evaluations = [], []
    for folder in sorted((study / "runs").glob("*")):
        if result := read_result(folder):
            runs.append(result["run"])
            evaluations += result["evaluations"]
            for path in sorted((folder / "evaluations").glob("*.json")):
                evaluations += read_json(path) or []
    write_table(study / "runs.parquet", runs, RUNS)
    write_table(study / "evaluations.parquet", evaluations, EVALUATIONS)
    return runs, evaluations


@cache
def environment() -> dict[str, str]:
    """Describe the machine and code of a run: package versions (JSON), git commit and host."""
    versions = {"python": platform.python_version()}
    for package in ("tarflow", "torch", "ray", "optuna", "numpy", "torch-fidelity"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "versions": json.dumps(versions),
        "git": git.stdout.strip() or "unknown",
        "host": socket.gethostname(),
    }
