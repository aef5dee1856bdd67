"""`python -m tarflow convert`: read published weights."""

from pathlib import Path
from typing import Annotated

import tyro

from tarflow.errors import UserError, check_flags


def convert(
    source: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    /,
    name: str = "",
    patch: int | None = None,
    noise_std: float | None = None,
    data: str = "",
    key: str = "",
    image_size: int = 0,
    condition_tokens: int = 0,
) -> int:
    """Turn published TarFlow or STARFlow weights into a model that the other commands take.

    Patch and noise are read from the name of the file, everything else from its shapes. A file
    that holds anything but weights is refused. STARFlow's files need --noise-std and --image-size,
    those with text --condition-tokens as well; guidance then needs the encoding of the empty text,
    which no file holds: give it with the conditions (`sample --condition`).

    Example: python -m tarflow convert afhq_model_8_768_8_8_0.07.pth afhq

    Args:
        source: Published .pth file.
        out: Folder for model.safetensors.
        name: Published name, if the file has been renamed.
        patch: Pixels along one side of a patch, if the name does not say.
        noise_std: Standard deviation of the training noise for images in [-1, 1], if the name
            does not say; 0 for uniform noise.
        data: Images to evaluate on, as in the config of a run.
        key: Key of the weights, such as ema, if the file holds several.
        image_size: Pixels, or values of a latent, along one side; only STARFlow needs it.
        condition_tokens: Text tokens of an image; only STARFlow with text needs it.
    """
    from tarflow.data import latent_space, match_data
    from tarflow.model.official import read_official
    from tarflow.model.weights import save_model

    check_flags(noise_std=noise_std)
    target = out / "model.safetensors"
    if target.exists():
        raise UserError(f"{target} exists: remove it or name another folder")
    flow, config = read_official(
        source, name, patch, noise_std, data, key, image_size, condition_tokens
    )
    if data:
        config = match_data(config)
    save_model(target, flow.state_dict(), config, latent_space(config.data) if data else None)
    model = config.model
    labels = f"{model.classes} classes" if model.classes else "no classes"
    noise = f"Gaussian, std {config.noise.std}" if config.noise.type == "gaussian" else "uniform"
    print(
        f"{target}: images of {model.image_channels} x {model.image_size} x {model.image_size}, "
        f"patch {model.patch}, {model.channels} channels, {model.blocks} blocks, "
        f"{model.layer_split or model.layers} layers, {labels}, noise {noise}"
    )
    return 0
