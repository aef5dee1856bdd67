"""Release a trained model: a folder with weights, numbers, their origin and a model card.

The card has the format of Hugging Face, and `push` uploads the folder there.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from tarflow import __version__, human
from tarflow.config import RunConfig, SamplerConfig
from tarflow.cost import params_total
from tarflow.errors import UserError
from tarflow.forecasts import Forecast, forecast_of, now
from tarflow.loaded import Model, load
from tarflow.model.weights import latents_of_model
from tarflow.record import environment, read_json, read_result, write_json, write_text
from tarflow.sample.grid import captions, save_grid
from tarflow.sample.plan import PLAN
from tarflow.storage import MODEL, Remote, locate, locate_model

CARD, METRICS, PROVENANCE, SAMPLES = "README.md", "metrics.json", "provenance.json", "samples.png"
BITS = {
    "bound": (
        "Bits per dimension bound the code length of the clean 8-bit images from above; they can "
        "be compared between noise levels."
    ),
    "dequantised": (
        "Bits per dimension bound those of the 8-bit images from above, by uniform dequantisation."
    ),
    "latent": (
        "Bits per latent dimension are `-log2 p` of the noisy latent per value: they depend on "
        "the autoencoder and the noise, and cannot be compared with bits of pixels."
    ),
}
LIKELIHOOD = ("bpd", "bpd_se", "bpd_kind", "bpd_median", "bpd_p99", "bpd_max", "loss")
QUALITY = {  # columns of evaluations.parquet in the card
    "kid": "KID",
    "fid": "FID",
    "fd": "FD",
    "fd_infinity": "FD, infinite samples",
    "inception_score": "Inception score",
    "precision": "precision",
    "recall": "recall",
}


def release(
    run: str | Path, out: str | Path, license: str = "", name: str = "", push: str = ""
) -> Path:
    """Write a folder that hands a trained model on: weights, samples, numbers, origin, card.

    Args:
        run: Folder of a finished run, or its model.safetensors.
        out: Folder to create.
        license: Identifier of a licence as Hugging Face writes it, such as apache-2.0.
        name: Name of the model on its card; by default that of `push`, or of the folder.
        push: Repository on Hugging Face, OWNER/NAME, that the card tells how to download; see
            `push_release`.

    Returns:
        The folder.

    Raises:
        UserError: If the run is not finished, or the folder exists.
    """
    folder, file = locate(out), locate_model(run)
    if not file.exists():
        raise UserError(f"cannot read {file}: no such file or folder")
    result = read_result(file.parent)
    if not result or result["run"]["status"] != "done":
        raise UserError(f"{file.parent} holds no finished run: train it first")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} exists: remove it or name another folder")
    model = load(file)
    weights = file.read_bytes()
    study = file.resolve().parents[2] if file.parent.parent.name == "runs" else file.parent
    forecast = forecast_of(study, result["run"]["run_id"])
    metrics = _metrics(result, read_json(file.parent / "test.json"), forecast)
    provenance = _provenance(model.config, result["run"], study, weights)
    name = name or push.rpartition("/")[2] or folder.name
    card = _card(name, folder.name, push, license, model, metrics, provenance)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = model.sample()
    classes = " ".join(map(str, range(model.config.model.classes)))
    save_grid(folder / SAMPLES, drawn.grid(), captions(name, 0, model.config.sampler, classes))
    if (file.parent / PLAN).exists():
        (folder / PLAN).write_bytes((file.parent / PLAN).read_bytes())
    (folder / MODEL).write_bytes(weights)
    write_json(folder / METRICS, metrics)
    write_json(folder / PROVENANCE, provenance)
    write_text(folder / CARD, card)
    return folder


def _metrics(
    result: Mapping[str, Any], test: Mapping[str, Any] | None, forecast: Forecast | None
) -> dict[str, Any]:
    """Return the numbers of a run with their errors; files of earlier releases may lack some."""
    run = result["run"]
    splits = {run["split"]: run} | ({"test": test} if test else {})
    whole = [
        row | {"reference": _last(row["reference"], 2)}
        for row in result["evaluations"]
        if row["half"] == "all"
    ]
    return {
        "bits_per_dimension": {
            split: {key: row.get(key) for key in LIKELIHOOD} for split, row in splits.items()
        },
        "samples": whole,
        "forecast": {
            key: value
            for key, value in asdict(forecast).items()
            if key not in ("config", "run_id", "in_words")
        }
        | {"inside": forecast.inside, "verdict": forecast.verdict}
        if forecast
        else None,
    }


def _provenance(
    config: RunConfig, run: Mapping[str, Any], study: Path, weights: bytes
) -> dict[str, Any]:
    """Return where a model comes from; it names no path and no machine."""
    return {
        "run_id": run["run_id"],
        "label": run["label"],
        "study": study.name if (study / "study.yaml").exists() else None,
        "started": run["started"],
        "git": run["git"],
        "versions": json.loads(run["versions"]),
        "numerics_version": run["numerics_version"],
        "seed": config.seed,
        "data": _data_name(config),
        "data_hash": config.data.hash,
        "precision": run["precision"],
        "kernels": run["kernels"],
        "flops": run["flops"],
        "device_seconds": run["device_seconds"],
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "released": now(),
        "released_by": {"tarflow": __version__, "git": environment()["git"]},
    }


def _data_name(config: RunConfig) -> str:
    return _last(config.data.name, 1)


def _last(path: str, parts: int) -> str:
    """Return the last parts of a path: the rest names a machine."""
    return "/".join(path.rstrip("/").split("/")[-parts:])


def _card(
    name: str,
    folder: str,
    push: str,
    license: str,
    released: Model,
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> str:
    """Return the model card, with numbers from the other files only."""
    config, space = released.config, latents_of_model(released.path)
    model = config.model
    if space:
        model = replace(model, image_size=space.image_size, image_channels=space.image_channels)
    rows = list(_rows(_data_name(config), metrics))
    template = Path(__file__).with_name("card.md.j2").read_text("utf-8")
    page = Environment(
        undefined=StrictUndefined, trim_blocks=True, autoescape=False, keep_trailing_newline=True
    ).from_string(template)
    (kind,) = {row["bpd_kind"] for row in metrics["bits_per_dimension"].values()}
    features = {row["feature_extractor"] for row in metrics["samples"]}
    return page.render(
        front=_front(name, license, config, rows),
        name=name,
        folder=folder,
        push=push,
        model=model,
        autoencoder=Path(space.autoencoder).name if space else "",
        bits_unit=human.bits_unit(kind),
        data=_data_name(config),
        picture=SAMPLES,
        samples_caption=_samples_caption(config),
        version=__version__,
        scores=rows,
        bits_caption=BITS[kind],
        features=", ".join(sorted(features)),
        forecast=(metrics["forecast"] or {}).get("verdict"),
        facts=list(_facts(config, provenance)),
        licence=f"`{license}`" if license else "None was given: ask the owner of this model.",
    )


def _front(name: str, license: str, config: RunConfig, rows: list[dict[str, Any]]) -> str:
    """Return the metadata of the card, which Hugging Face reads."""
    classes, data = config.model.classes, _data_name(config)
    task = "image-generation" if classes else "unconditional-image-generation"
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        metric = {"type": row["type"], "name": row["name"], "value": row["value"]}
        groups.setdefault(row["split"], []).append(metric)
    front: dict[str, Any] = {"license": license} if license else {}
    front |= {
        "library_name": "tarflow",
        "tags": ["tarflow", "normalizing-flow", "image-generation", "likelihood"],
        "datasets": [data],
        "metrics": list(dict.fromkeys(row["type"] for row in rows)),
    }
    if not classes:
        front["pipeline_tag"] = task
    front["model-index"] = [
        {
            "name": name,
            "results": [
                {
                    "task": {"type": task},
                    "dataset": {"type": data, "name": data, "split": split},
                    "metrics": group,
                }
                for split, group in groups.items()
            ],
        }
    ]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _rows(data: str, metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the measures of the card: type and name, value and text, images and their split."""
    for split, scores in metrics["bits_per_dimension"].items():
        unit = human.bits_unit(scores["bpd_kind"])
        yield {
            "type": unit.replace(" ", "_"),
            "name": f"{unit} (lower is better)",
            "value": scores["bpd"],
            "text": _measured(scores["bpd"], scores["bpd_se"], human.bits),
            "split": split,
            "images": f"{data}, {split}",
        }
    for samples in metrics["samples"]:
        split = samples["reference"].rpartition("/")[2]
        for column, name in QUALITY.items():
            if not human.missing(samples.get(column)):
                yield {
                    "type": column,
                    "name": name,
                    "value": samples[column],
                    "text": _measured(samples[column], samples.get(f"{column}_se"), human.number),
                    "split": split,
                    "images": f"{samples['n']:,} samples, {samples['n_reference']:,} of {split}",
                }


def _measured(value: float, error: float | None, write: Any) -> str:
    return f"{write(value)}" + ("" if human.missing(error) else f" ± {write(error)}")


def _samples_caption(config: RunConfig) -> str:
    rows = "One row per class, w" if config.model.classes else "W"
    return f"{rows}ithout selection. Sampler: {_sampler(config.sampler)}."


def _sampler(sampler: SamplerConfig) -> str:
    words = [f"guidance {sampler.guidance:g}" if sampler.guidance else "no guidance"]
    words.append(f"denoising {sampler.denoise:g}" if sampler.denoise else "no denoising")
    return ", ".join(words)


def _facts(config: RunConfig, provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the rows of the table of how the model was trained."""
    model, noise = config.model, config.noise
    yield "parameters", f"{params_total(model):,}"
    yield (
        "architecture",
        f"{model.blocks} blocks of {model.layer_split or model.layers} "
        f"layer{'s' * (model.total_layers > model.blocks)}, "
        f"{model.channels} channels, "
        f"patch {model.patch}",
    )
    kind = (
        f"Gaussian, standard deviation {noise.std:g}" if noise.type == "gaussian" else noise.type
    )
    yield "noise", kind
    yield "images seen", f"{config.images:,}, {config.batch} a step"
    yield "training", f"{human.power(provenance['flops'], 3)} FLOPs in {provenance['precision']}"
    yield "seed", str(provenance["seed"])
    yield "data", f"`{provenance['data']}`, content hash `{provenance['data_hash']}`"
    yield "run", f"`{provenance['run_id']}` ({provenance['label']})"
    if provenance["study"]:
        yield "study", f"`{provenance['study']}`"
    versions = provenance["versions"]
    shown = (
        f"{package} {versions[package]}" for package in ("tarflow", "torch") if package in versions
    )
    yield "code", f"git `{provenance['git']}`, {', '.join(shown)}"
    yield "weights", f"SHA-256 `{provenance['weights_sha256']}`"


def check_push(name: str) -> None:
    """Check that a release can be uploaded from here, before any work.

    Raises:
        UserError: If the package or the token is missing, or the name is not a valid one.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError("--push needs a package: pip install 'tarflow[hub]'")
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push {name}: {str(error).splitlines()[0]}") from None
    if not get_token():
        raise UserError("--push needs a token of Hugging Face: run hf auth login, or set HF_TOKEN")


def push_release(folder: Path, name: str) -> str:
    """Upload a release to Hugging Face and return its address; HF_ENDPOINT names another server.

    Args:
        folder: Folder that `release` wrote.
        name: Repository, OWNER/NAME; created if it does not exist.

    Raises:
        UserError: If the upload fails; the folder stays.
    """
    from huggingface_hub import HfApi

    if isinstance(folder, Remote):
        raise UserError(
            f"{folder} is not a folder of this machine: release to a local one to push"
        )
    api = HfApi()
    try:
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, commit_message=f"Release with tarflow {__version__}"
        )
    except Exception as error:  # each release of the package has other errors of the network
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot push to {name}: {reason}; {folder} is complete: hf upload {name} {folder}"
        ) from None
    return str(address)
