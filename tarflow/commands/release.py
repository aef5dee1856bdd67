"""`python -m tarflow release`: hand a trained model on."""

from pathlib import Path
from typing import Annotated

import tyro

from tarflow.commands.checkpoint import Checkpoint


def release(
    run: Checkpoint,
    out: Annotated[Path, tyro.conf.Positional],
    /,
    license: str = "",
    name: str = "",
    push: str = "",
) -> int:
    """Write a folder that hands a trained model on: weights, samples, numbers, origin, model card.

    The other commands and `tarflow.load` take the folder like that of a run. The card, README.md,
    has the format of Hugging Face.

    Example: python -m tarflow release studies/digits/runs/RUN_ID digits-flow --license mit

    Args:
        run: Folder of a finished run.
        out: Folder to create.
        license: Licence of the model as Hugging Face writes it, such as apache-2.0.
        name: Name of the model on its card; by default that of the folder.
        push: Repository on Hugging Face to upload to, OWNER/NAME; needs pip install 'tarflow[hub]'
            and a token.
    """
    from tarflow import publish

    if push:
        publish.check_push(push)
    folder = publish.release(run, out, license, name, push)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if not license:
        print("no licence: others may not use the model; name one with --license")
    if push:
        print(f"pushed to {publish.push_release(folder, push)}")
    return 0
