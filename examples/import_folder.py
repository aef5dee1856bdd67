"""Turn a folder of images, one subfolder per class, into a data set to train on.

    python examples/import_folder.py PICTURES TABLE 64

Without arguments it first makes such a folder, of painted leaves. Prints:

    leaves: 32x32, 3 channels, 10 classes, 164 train, 18 validation, 18 test
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from tarflow.config import DataConfig
from tarflow.data.images import describe
from tarflow.data.importing import import_folder
from tarflow.data.procedural import LEAF_CLASSES, leaves


def paint(folder: Path) -> None:
    """Save 200 images of 40x40 pixels as folder/CLASS/NUMBER.png."""
    for index, pixels in enumerate(leaves("train", 0, 200, 40)):
        path = folder / f"palette {index % LEAF_CLASSES}" / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(path)


def main(source: Path, target: Path, size: int) -> None:
    """Import the folder and say what the data set holds."""
    import_folder(source, target, size)
    d = describe(DataConfig(name=str(target)))
    print(
        f"{target.name}: {d.image_size}x{d.image_size}, {d.channels} channels, {d.classes} "
        f"classes, {d.train} train, {d.validation} validation, {d.test} test"
    )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            paint(Path(folder, "pictures"))
            main(Path(folder, "pictures"), Path(folder, "leaves"), 32)
