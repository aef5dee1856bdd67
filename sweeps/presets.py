"""The studies that have a name, and how a name is found."""

from collections.abc import Callable

from sweeps import ablations, grids
from sweeps.study import Study, unknown
from tarflow import config as configs
from tarflow.config import ConfigError
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
}


def load(name: str) -> Study:
    """Return a preset by name, or the study in a YAML file or in the folder of a study.

    Raises:
        ConfigError: if there is neither, naming the nearest; or if the file is no study.
    """
    if name in PRESETS:
        return PRESETS[name]()
    path = locate(name).expanduser()
    path = path / "study.yaml" if path.is_dir() else path
    if path.is_file():
        return configs.read_yaml(Study, path)
    if path.suffix in (".yaml", ".yml"):
        files = [str(file) for file in path.parent.glob("*.y*ml")]
        raise ConfigError(f"study {unknown(name, files)}")
    raise ConfigError(f"study {unknown(name, PRESETS)} (or give a YAML file)")
