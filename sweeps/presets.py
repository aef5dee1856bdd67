"""The studies that have a name, and how a name is found."""

from collections.abc import Callable

from sweeps import ablations, grids, paper
from sweeps.study import Study, unknown
from tarflow import config as configs
from tarflow.errors import UserError
from tarflow.storage import locate

PRESETS: dict[str, Callable[[], Study]] = {
    "digits": grids.digits,
    "tiny": grids.tiny,
    "cifar10": grids.cifar10,
    "imagenet64": grids.imagenet64,
    "ablation-noise": ablations.noise,
    "ablation-noise-leaves": ablations.noise_leaves,
    "ablation-noise-cifar10": ablations.noise_cifar10,
    "ablation-denoise": ablations.denoise,
    "ablation-guidance": ablations.guidance,
    "ablation-shape": ablations.shape,
    "paper-imagenet64-likelihood": paper.imagenet64_likelihood,
    "paper-imagenet64": paper.imagenet64,
    "paper-imagenet64-labels": paper.imagenet64_labels,
    "paper-imagenet128": paper.imagenet128,
    "paper-afhq256": paper.afhq256,
    "paper-cifar10": paper.cifar10,
}

IMPORTS = {  # how the data of the presets are made from what one can download
    "data/cifar10": "cifar-10-batches-py data/cifar10 --kind cifar",
    "data/imagenet64": "Imagenet64_npz data/imagenet64 --kind npz",
    "data/imagenet-64px": "ILSVRC2012 data/imagenet-64px --size 64",
    "data/imagenet-128px": "ILSVRC2012 data/imagenet-128px --size 128",
    "data/afhq-256px": "afhq data/afhq-256px --size 256",
}


def load(name: str) -> Study:
    """Return a preset by name, or the study in a YAML file or in the folder of a study.

    Raises:
        UserError: if there is neither, naming the nearest; or if the file is no study.
    """
    if name in PRESETS:
        return PRESETS[name]()
    path = locate(name).expanduser()
    path = path / "study.yaml" if path.is_dir() else path
    if path.is_file():
        return configs.read_yaml(Study, path)
    if path.suffix in (".yaml", ".yml"):
        files = [str(file) for file in path.parent.glob("*.y*ml")]
        raise UserError(f"study {unknown(name, files)}")
    raise UserError(f"study {unknown(name, PRESETS)} (or give a YAML file)")
