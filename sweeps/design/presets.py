"""The preset studies, one YAML file each in `studies/`, and how a study is found by its name."""

from pathlib import Path

from sweeps.design.study import Study, did_you_mean
from tarflow.config_files import from_dict, read_plain, read_yaml
from tarflow.errors import ConfigError, UserError
from tarflow.fields import merged
from tarflow.storage import expand, locate

FOLDER = Path(__file__).parent.with_name("studies")
PRESETS = sorted(path.stem for path in FOLDER.glob("*.yaml"))

IMPORTS = {  # arguments of `python -m tarflow data` that make the presets' data from downloads
    "data/fashion": "/usr/share/datasets/fashion-mnist data/fashion",
    "data/cifar10": "cifar-10-batches-py data/cifar10 --kind cifar",
    "data/imagenet64": "Imagenet64_npz data/imagenet64 --kind npz",
    "data/imagenet-64px": "ILSVRC2012 data/imagenet-64px --size 64",
    "data/imagenet-128px": "ILSVRC2012 data/imagenet-128px --size 128",
    "data/afhq-256px": "afhq data/afhq-256px --size 256",
    "data/imagenet-256px-latents": "encode data/imagenet-256px data/imagenet-256px-latents "
    "--autoencoder sd-vae-ft-ema",
}

FIRST = {  # commands before these
    "data/fashion": "apt-get install dataset-fashion-mnist",
    "data/imagenet-256px-latents": "python -m tarflow data ILSVRC2012 data/imagenet-256px "
    "--size 256",
}


def how_to_import(name: str) -> str:
    """Return the commands that make the data of a preset.

    >>> how_to_import("data/cifar10")
    'python -m tarflow data cifar-10-batches-py data/cifar10 --kind cifar'
    """
    first = f"{FIRST[name]} && " if name in FIRST else ""
    return f"{first}python -m tarflow data {IMPORTS[name]}"


def load(name: str) -> Study:
    """Return a preset, or the study in a YAML file or in a study's folder.

    Args:
        name: Name of a preset, or path or address of a file or folder.

    Raises:
        UserError: If there is no such study, naming the nearest; or if the file holds none.
    """
    if name in PRESETS:
        return read_yaml(Study, FOLDER / f"{name}.yaml")
    path = expand(locate(name))
    path = path / "study.yaml" if path.is_dir() else path
    if path.is_file():
        return _read(path)
    if path.suffix in (".yaml", ".yml"):
        files = [str(file) for file in path.parent.glob("*.y*ml")]
        raise UserError(f"study {did_you_mean(name, [*files, *PRESETS])}")
    if "=" in name:
        raise UserError(f"study '{name}' is not known; to change a field, write --set {name}")
    raise UserError(f"study {did_you_mean(name, PRESETS)} (or give a YAML file)")


def folder_of(name: str) -> Path | None:
    """Return the folder whose study a name means, as it or its study.yaml; None for any other."""
    if name in PRESETS:
        return None
    path = locate(name)
    own_file = path.name == "study.yaml" and (path.parent / "runs").is_dir()
    return path.parent if own_file else path if path.is_dir() else None


def _read(path: Path) -> Study:
    """Read a study file; with a key `preset`, it holds only what differs from that preset."""
    plain = read_plain(path)
    if isinstance(plain, dict) and "preset" in plain:
        changes = {"name": path.stem} | plain
        preset = str(changes.pop("preset"))
        if preset not in PRESETS:
            raise ConfigError(f"{path}: preset {did_you_mean(preset, PRESETS)}")
        plain = merged(read_plain(FOLDER / f"{preset}.yaml"), changes)
    return from_dict(Study, plain, where=str(path))


def description(preset: str) -> str:
    """Return the first line of a preset's file, which says in a sentence what it studies.

    >>> description("tiny")
    'Half a minute in all: what tests and examples run. Its numbers mean nothing.'
    """
    with (FOLDER / f"{preset}.yaml").open(encoding="utf-8") as file:
        return file.readline().removeprefix("# ").strip()
