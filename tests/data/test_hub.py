"""Imports from the Hugging Face hub, and of local folders by its library."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from image_files import classes, labels_of, noise_images, png
from PIL import Image

from tarflow import data
from tarflow.config import DataConfig
from tarflow.data import codec
from tarflow.data.hub import _examples, import_hub
from tarflow.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")


def test_import_hub_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        import_hub("mnist", tmp_path / "set", 8)


def test_import_hub_reads_a_local_folder(tmp_path):
    pytest.importorskip("datasets")
    images = noise_images(6, size=8)
    for number, image in enumerate(images):
        split = ("train", "test")[number // 4]
        path = tmp_path / "source" / split / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    counts = import_hub(str(tmp_path / "source"), tmp_path / "set", 8).counts
    assert counts == {"train": 4, "test": 2}
    test = data.open_split(DataConfig(name=str(tmp_path / "set")), "test")
    assert sorted(test.labels.tolist()) == [0, 1]
    assert {image.tobytes() for image in test.pixels} == {
        image.transpose(2, 0, 1).tobytes() for image in images[4:]
    }
    with pytest.raises(UserError, match="cannot load"):
        import_hub(str(tmp_path / "nowhere"), tmp_path / "other", 8)
    path.write_bytes(png(images[0])[:-40])
    with pytest.raises(UserError, match=r"cannot use 1 of 6 images: cannot decode .*: test row 1"):
        import_hub(str(tmp_path / "source"), tmp_path / "other", 8)
    imported = import_hub(str(tmp_path / "source"), tmp_path / "other", 8, skip_broken=True)
    assert imported.counts == {"train": 4, "test": 1}


class StoredImage:
    def __init__(self, decode=True):
        self.decode = decode

    def decode_example(self, stored):
        return codec.decode(stored, "it") if isinstance(stored, bytes) else stored


@pytest.fixture
def hub(monkeypatch):
    """Return a function that puts splits of examples in place of every set on the hub."""

    def put(splits, **label):
        module = SimpleNamespace(Image=StoredImage, ClassLabel=ClassLabel)
        features = {"image": StoredImage(), **label}

        class Examples(list):
            def cast_column(self, column, feature):
                assert (column, feature.decode) == ("image", False)
                return self

            def select_columns(self, keys):
                return [{key: example[key] for key in keys} for example in self]

        loaded = {name: Examples(examples) for name, examples in splits.items()}
        for examples in loaded.values():
            examples.features = features
        module.load_dataset = lambda *_, **_options: loaded
        monkeypatch.setitem(sys.modules, "datasets", module)

    return put


class ClassLabel:
    names = ("cat", "dog")


def test_import_hub_refuses_deep_images(tmp_path, hub):
    hub({"train": [{"image": Image.fromarray(np.full((8, 8), 4096, np.uint16))}]})
    with pytest.raises(UserError, match="set: train row 0 is not an 8-bit image"):
        import_hub("set", tmp_path / "set", 8)


def hub_rows(*labels, column="label"):
    images = [Image.fromarray(array) for array in noise_images(len(labels))]
    return [{"image": image, column: label} for image, label in zip(images, labels, strict=True)]


def test_import_hub_leaves_out_unlabelled_rows_aloud(tmp_path, hub):
    hub({"train": hub_rows(0, 1, None), "test": hub_rows(-1, -1)}, label=ClassLabel())
    imported = import_hub("set", tmp_path / "set", 8)
    assert imported.counts == {"train": 2}
    assert labels_of(tmp_path / "set") == {"train": [0, 1]}
    assert imported.notes[-3:] == [
        "labels: column 'label'",
        "left out of train, as they have no label: 1",
        "left out of test, as they have no label: 2",
    ]
    hub({"test": hub_rows(-1, -1)}, label=ClassLabel())
    with pytest.raises(UserError, match="no images to write"):
        import_hub("set", tmp_path / "other", 8)


def test_import_hub_uses_labels_that_are_no_classes(tmp_path, hub):
    hub({"train": hub_rows(3, 0), "test": hub_rows(1)}, label=SimpleNamespace(dtype="int64"))
    import_hub("set", tmp_path / "integers", 8)
    assert labels_of(tmp_path / "integers") == {"train": [3, 0], "test": [1]}

    rows = {
        "train": hub_rows("dog", "ant", column="labels"),
        "test": hub_rows("cat", column="labels"),
    }
    hub(rows, labels=SimpleNamespace(dtype="string"))
    import_hub("set", tmp_path / "words", 8)
    assert labels_of(tmp_path / "words") == {"train": [2, 0], "test": [1]}
    assert classes(tmp_path / "words")[0] == ["ant", "cat", "dog"]

    hub({"train": hub_rows(0.5)}, label=SimpleNamespace(dtype="float32"))
    with pytest.raises(UserError, match="labels in column 'label' are float32"):
        import_hub("set", tmp_path / "other", 8)


def test_import_hub_names_a_row_without_image(tmp_path, hub):
    hub({"train": [*hub_rows(0), {"image": None, "label": 1}]}, label=ClassLabel())
    with pytest.raises(UserError, match="set: train row 1 has no image"):
        import_hub("set", tmp_path / "set", 8)


def test_import_hub_names_all_broken_images_or_leaves_them_out(tmp_path, hub):
    rows = [*hub_rows(0, 1, 1), {"image": b"no image", "label": 0}, {"image": None, "label": 1}]
    hub({"train": rows, "test": rows[3:4]}, label=ClassLabel())
    with pytest.raises(UserError, match="cannot use 3 of 6 images: ") as caught:
        import_hub("set", tmp_path / "set", 8)
    for words in ("decode set: train row 3: ", "set: train row 4 has no", "set: test row 0: "):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    imported = import_hub("set", tmp_path / "set", 8, skip_broken=True)
    assert labels_of(tmp_path / "set") == {"train": [0, 1, 1]}
    assert imported.notes[-1].startswith("left out (3): cannot decode set: train row 3: ")
    hub({"train": rows[3:]}, label=ClassLabel())
    with pytest.raises(UserError, match="cannot use 2 of 2 images"):
        import_hub("set", tmp_path / "none", 8, skip_broken=True)


def test_import_hub_names_a_row_that_cannot_be_read():
    def rows():
        yield from hub_rows(0)
        raise OSError("the connection is lost")

    with pytest.raises(UserError, match="cannot read set: train row 1: the connection is lost"):
        list(_examples(rows(), "set: train"))
