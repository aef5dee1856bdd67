"""Imports of image sets from other layouts."""

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from image_files import (
    classes,
    labels_of,
    noise_images,
    png,
    python2_pickle,
    write_cifar10,
)
from PIL import Image

from tarflow import data
from tarflow.__main__ import main
from tarflow.config import DataConfig
from tarflow.data import importing
from tarflow.data.tables import find_table
from tarflow.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")


def test_import_folder(tmp_path):
    images = noise_images(5, size=8)
    for number, image in enumerate(images):
        name = ("cat", "dog")[number % 2]
        path = tmp_path / "source" / ("val" if number == 4 else "train") / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    target = tmp_path / "set"
    imported = importing.import_folder(tmp_path / "source", target, 8)
    assert imported.counts == {"train": 4, "validation": 1}
    config = DataConfig(name=str(target))
    validation = data.open_split(config, "validation")
    np.testing.assert_array_equal(validation.pixels[0], images[4].transpose(2, 0, 1))
    assert (validation.labels.tolist(), validation.classes) == ([0], 2)
    with pytest.raises(UserError, match="exists"):
        importing.import_folder(tmp_path / "source", target, 8)

    (tmp_path / "source/train/dog/1.png").write_bytes(png(images[0])[:-40])
    with pytest.raises(UserError, match=r"cannot decode .*/dog/1\.png: "):
        importing.import_folder(tmp_path / "source", tmp_path / "other", 8)
    assert not list(tmp_path.glob("*other*"))
    with pytest.raises(UserError, match="holds no images"):
        importing.import_folder(target, tmp_path / "other", 8)


def write_images(folder, *names):
    for name, image in zip(names, noise_images(len(names)), strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))


def test_hidden_files_and_other_endings_are_counted(tmp_path):
    source = tmp_path / ".source"  # only what is hidden below the source is skipped
    write_images(source, "cat/0.png", "cat/1.PNG", "dog/0.png")
    write_images(source, "cat/.ipynb_checkpoints/0-checkpoint.png", "a.gif", "dog/b.GIF", "c.tif")
    for name in ("cat/._0.png", "__MACOSX/cat/._0.png", ".DS_Store"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"no image")
    imported = importing.import_folder(source, tmp_path / "set", 8)
    assert imported.counts == {"train": 3}
    assert imported.notes[-3:] == [
        "classes (2): cat, dog",
        "images: 3 colour; 8x8 pixels",
        "skipped: 4 hidden, 2 .gif, 1 .tif",
    ]
    assert classes(tmp_path / "set") == (["cat", "dog"], [0, 0, 1])


def test_links_are_followed(tmp_path):
    write_images(tmp_path, "source/cat/0.png", "elsewhere/0.png", "elsewhere/1.png", "one.png")
    (tmp_path / "source/dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "source/fox").symlink_to("../elsewhere")  # twice the same folder is no cycle
    (tmp_path / "source/cat/1.png").symlink_to(tmp_path / "one.png")
    imported = importing.import_folder(tmp_path / "source", tmp_path / "set", 8)
    assert imported.counts == {"train": 6}
    assert classes(tmp_path / "set") == (["cat", "dog", "fox"], [0, 0, 1, 1, 2, 2])

    (tmp_path / "source/cat/back").symlink_to(tmp_path / "source")
    with pytest.raises(UserError, match="cat/back is a link to a folder that contains it"):
        importing.import_folder(tmp_path / "source", tmp_path / "other", 8)
    (tmp_path / "source/cat/back").unlink()
    for name in ("bee", "cow"):
        (tmp_path / "source" / name).symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"lead nowhere: \S*/bee, \S*/cow; repair"):
        importing.import_folder(tmp_path / "source", tmp_path / "other", 8)


def test_broken_files_are_named_at_once_or_left_out(tmp_path, capsys):
    source = tmp_path / "source"
    write_images(source, *(f"cat/{number:02d}.png" for number in range(17)))
    Image.new("L", (20, 10)).save(source / "cat/grey.png")
    (source / "cat/a.png").write_bytes(png(noise_images(1)[0])[:-40])
    (source / "cat/b.jpg").write_bytes(b"")
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(source / "cat/deep.png")
    Image.new("1", (20000, 20000)).save(source / "cat/huge.png")
    with pytest.raises(UserError, match="cannot use 4 of 22 images: ") as caught:
        importing.import_folder(source, tmp_path / "set", 8)
    for name in (
        "cannot decode {}/cat/a.png: ",
        "cannot decode {}/cat/b.jpg: ",
        "{}/cat/deep.png is not an 8-bit image",
        "cannot decode {}/cat/huge.png: ",
    ):
        assert name.format(source) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()

    assert main(["data", str(source), str(tmp_path / "set"), "--size", "8", "--skip-broken"]) == 0
    printed = capsys.readouterr().out
    assert ": 18 train\n" in printed
    assert "images: 17 colour, 1 grey; 8x8 to 20x10 pixels\n" in printed
    assert f"left out (4): cannot decode {source}/cat/a.png" in printed

    for path in source.glob("cat/[0-9g]*.png"):
        path.unlink()
    with pytest.raises(UserError, match="cannot use 4 of 4 images"):
        importing.import_folder(source, tmp_path / "none", 8, skip_broken=True)


@pytest.mark.parametrize(
    ("paths", "counts", "names"),
    [
        (["data/train/cat/0", "data/train/dog/0", "data/test/cat/0"], (2, 0, 1), ["cat", "dog"]),
        (["X/Y/train/a/0", "X/Y/Val/a/0", "X/Y/test/a/0"], (1, 1, 1), ["a"]),
        (["images/train/0", "images/train/1", "images/valid/0"], (2, 1, 0), None),
        (["cat/train/0", "cat/test/0", "dog/train/0", "dog/test/0"], (2, 0, 2), ["cat", "dog"]),
        (
            ["test_tube/0", "beaker/0", "train_interior/0"],
            (3, 0, 0),
            ["beaker", "test_tube", "train_interior"],
        ),
        (["train/test_tube/0", "validation/test_tube/0"], (1, 1, 0), ["test_tube"]),
        (["photos/cat/0", "photos/dog/0"], (2, 0, 0), ["photos/cat", "photos/dog"]),
        (["coco/train2017/0", "coco/val2017/0", "coco/test2017/0"], (1, 1, 1), None),
        (["train_images/cat/0", "train_images/dog/0", "testset/cat/0"], (2, 0, 1), ["cat", "dog"]),
        (["train-1/cat/0", "train-2/cat/0", "dev/cat/0"], (2, 1, 0), ["cat"]),
        (["train/train_2b/0", "val2017/train_2b/0"], (1, 1, 0), ["train_2b"]),
    ],
)
def test_splits_are_whole_words_at_any_depth(tmp_path, paths, counts, names):
    write_images(tmp_path / "source", *(f"{path}.png" for path in paths))
    imported = importing.import_folder(tmp_path / "source", tmp_path / "set", 8)
    assert tuple(imported.counts.get(split, 0) for split in data.SPLITS) == counts
    if names is None:
        assert imported.notes[-2] == "no classes: the images are not in class folders"
    else:
        assert classes(tmp_path / "set")[0] == names
        assert imported.notes[-2] == (f"classes ({len(names)}): {', '.join(names)}")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["train/train/0", "train/car/0"], "train/train is in two folders named after splits"),
        (["train/val/cat/0"], "train/val/cat is in two folders named after splits"),
        (["train/0", "car/0"], "source/train is named after a split and .*/source/car is not"),
        (["train/cat/0", "0"], "named after a split and .*/source is not"),
        (["train/cat/0", "test/0"], "some images are in class folders and some are not"),
    ],
)
def test_ambiguous_folders_are_refused(tmp_path, paths, message):
    write_images(tmp_path / "source", *(f"{path}.png" for path in paths))
    with pytest.raises(UserError, match=message):
        importing.import_folder(tmp_path / "source", tmp_path / "set", 8)


def test_classes_without_train_images_are_named(tmp_path):
    write_images(tmp_path / "source", "train/cat/0.png", "val/images/0.png")
    imported = importing.import_folder(tmp_path / "source", tmp_path / "set", 8)
    assert imported.notes[-3:-1] == ["classes (2): cat, images", "no train images in: images"]


def test_splits_taken_out_of_train_are_said(tmp_path):
    write_images(tmp_path / "source", *(f"{number}.png" for number in range(60)))
    imported = importing.import_folder(tmp_path / "source", tmp_path / "set", 8)
    assert imported.counts == {"train": 60}
    described = data.describe(DataConfig(name=str(tmp_path / "set")))
    assert described.validation > 0
    assert described.test > 0
    assert imported.notes[0] == (
        "no validation or test images found; runs will take some out of train, which gives "
        f"{described.train} train, {described.validation} validation, {described.test} test"
    )

    write_images(tmp_path / "few", "train/0.png", "test/0.png")
    imported = importing.import_folder(tmp_path / "few", tmp_path / "few-set", 8)
    assert imported.notes[:2] == [
        "no validation images found; runs will take some out of train, which gives 1 train, "
        "0 validation, 1 test",
        "runs will fail, as there are no images for validation; import more",
    ]
    write_images(tmp_path / "all", "train/0.png", "val/0.png", "test/0.png")
    imported = importing.import_folder(tmp_path / "all", tmp_path / "all-set", 8)
    assert imported.notes == [
        "runs need 4 held-out images: import more for validation and test, or set "
        "evaluation.samples to 0",
        "no classes: the images are not in class folders",
        "images: 3 colour; 8x8 pixels",
    ]


def test_import_npz(tmp_path):
    images = noise_images(24, size=4).transpose(0, 3, 1, 2)
    (tmp_path / "source").mkdir()
    for name, part in {"train_data_batch_10": [2, 3], "train_data_batch_2": [0, 1]}.items():
        rows = np.concatenate([images[8 * part[0] // 2 : 8 * part[0] // 2 + 8]]).reshape(8, -1)
        np.savez(tmp_path / f"source/{name}.npz", data=rows, labels=np.arange(1, 9))
    np.savez(tmp_path / "source/val_data.npz", data=images[16:].reshape(8, -1), labels=[1000] * 8)
    counts = importing.import_npz(tmp_path / "source", tmp_path / "set").counts
    assert counts == {"train": 16, "test": 8}
    table = pq.read_table(tmp_path / "set/train-00000.parquet")
    assert table["label"].to_pylist() == [*range(8), *range(8)]
    first = np.asarray(Image.open(io.BytesIO(table["image"][0].as_py()["bytes"])))
    np.testing.assert_array_equal(first, images[0].transpose(1, 2, 0))
    test = data.open_split(DataConfig(name=str(tmp_path / "set")), "test")
    np.testing.assert_array_equal(test.pixels, images[16:])

    np.savez(tmp_path / "wrong.npz", data=np.array([{}], object), labels=[1])
    with pytest.raises(UserError, match=r"cannot read the archive .*wrong\.npz"):
        importing.import_npz(tmp_path / "wrong.npz", tmp_path / "other")


def test_npz_labels_are_kept_if_they_count_from_0(tmp_path):
    rows = noise_images(4, size=4).reshape(4, -1)
    (tmp_path / "source").mkdir()
    np.savez(tmp_path / "source/train_1.npz", data=rows, labels=[1, 2, 1, 9])
    np.savez(tmp_path / "source/train_2.npz", data=rows, labels=[0, 2, 1, 9])
    importing.import_npz(tmp_path / "source", tmp_path / "set")
    assert labels_of(tmp_path / "set") == {"train": [1, 2, 1, 9, 0, 2, 1, 9]}
    np.savez(tmp_path / "source/train_2.npz", data=rows, labels=[3, 2, 1, 9])
    importing.import_npz(tmp_path / "source", tmp_path / "from-1")
    assert labels_of(tmp_path / "from-1") == {"train": [0, 1, 0, 8, 2, 1, 0, 8]}
    np.savez(tmp_path / "source/train_2.npz", data=rows, labels=[3, -1, 1, 9])
    with pytest.raises(UserError, match=r"train_2\.npz:data has the label -1"):
        importing.import_npz(tmp_path / "source", tmp_path / "negative")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"imagenet32_val": "test", "train_data_batch_1": "train"}, {"test", "train"}),
        ({"imagenet32_val": "validation", "test": "test", "batch_1": "train"}, None),
        ({"my-valid-set": "validation", "mnist_test": "test", "training": "train"}, None),
        ({"latest": "train", "trains": "train", "evaluate": "train"}, None),
    ],
)
def test_any_word_of_a_file_decides_its_split(tmp_path, files, expected):
    (tmp_path / "source").mkdir()
    rows = noise_images(1, size=4).reshape(1, -1)
    (tmp_path / "source/._train_data_batch_1.npz").write_bytes(b"resource fork")
    for number, name in enumerate(files):
        np.savez(tmp_path / f"source/{name}.npz", data=rows, labels=[number])
    imported = importing.import_npz(tmp_path / "source", tmp_path / "set")
    written = labels_of(tmp_path / "set")
    for number, split in enumerate(files.values()):
        assert number in written[split]
    assert sum(imported.counts.values()) == len(files)
    assert set(written) == (expected or set(files.values()))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "names", ["x_{0} y_{0}", "X_{0} Y_{0}", "{0}_images {0}_labels", "{0}_data {0}_label"]
)
def test_archives_of_several_splits(tmp_path, names, channels):
    images = noise_images(6, channels=channels)
    arrays = {}
    for number, split in enumerate(("train", "val", "test")):
        pixels, labels = names.format(split).split()
        arrays[pixels] = images[2 * number : 2 * number + 2]
        arrays[labels] = np.array([[number], [7]], np.uint8)
    np.savez(tmp_path / "set.npz", **arrays)
    imported = importing.import_npz(tmp_path / "set.npz", tmp_path / "set")
    assert imported.notes[-3] == f"train: set.npz:{names.format('train').split()[0]}"
    assert labels_of(tmp_path / "set") == {"train": [0, 7], "validation": [1, 7], "test": [2, 7]}
    test = data.open_split(DataConfig(name=str(tmp_path / "set")), "test")
    stored = test.pixels[:, 0] if channels == 1 else test.pixels.transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(stored, images[4:])


def test_unlabelled_archives_have_no_classes(tmp_path):
    np.savez(tmp_path / "a.npz", noise_images(40))
    importing.import_npz(tmp_path / "a.npz", tmp_path / "set")
    assert data.describe(DataConfig(name=str(tmp_path / "set"))).classes == 0


@pytest.mark.parametrize("names", ["images labels", "x_train y_train", "data target"])
def test_flat_rows_of_grey_images_are_square(tmp_path, names):
    images = noise_images(3, size=28, channels=1)
    pixels, labels = names.split()
    np.savez(tmp_path / "mnist.npz", **{pixels: images.reshape(3, 784), labels: [7, 0, 3]})
    importing.import_npz(tmp_path / "mnist.npz", tmp_path / "set")
    assert labels_of(tmp_path / "set") == {"train": [7, 0, 3]}
    train = find_table(str(tmp_path / "set"))
    np.testing.assert_array_equal(list(train.images(np.ones(3, bool))), images[:, None])


def test_archives_that_are_refused(tmp_path):
    images = noise_images(2)
    for number, (arrays, message) in enumerate(
        [
            ({"images": images.astype(float)}, r"holds no images: it is float64 \(2, 8, 8, 3\)"),
            ({"images": images.astype(np.uint16)}, "holds no images: it is uint16"),
            ({"mean": images}, "holds no images, only the arrays mean"),
            ({"x": images[..., 0].reshape(2, 64)[:, :63]}, r"uint8 \(2, 63\), not .*\(N, S S\)"),
            ({"x": np.zeros((2, 0), np.uint8)}, r"uint8 \(2, 0\), not "),
            ({"images": images[:, :4]}, "must be square and of one size"),
            ({"images": images, "labels": [0.5, 1]}, "labels is float64; write integers"),
            ({"images": images, "labels": np.eye(2, dtype=int)}, "4 labels for 2 images"),
            ({"images": images, "fine_labels": [0, 1], "coarse_labels": [0, 0]}, "keep one"),
            ({"x_train": images, "y_train": [0, 1], "x_test": images}, "and some not"),
            ({"x_train_test": images}, "named after two splits"),
        ]
    ):
        np.savez(tmp_path / f"{number}.npz", **arrays)
        with pytest.raises(UserError, match=message):
            importing.import_npz(tmp_path / f"{number}.npz", tmp_path / "set")
    (tmp_path / "zip.npz").write_bytes((tmp_path / "0.npz").read_bytes()[:200])
    with pytest.raises(UserError, match="cannot read the archive"):
        importing.import_npz(tmp_path / "zip.npz", tmp_path / "set")


def test_import_cifar10(tmp_path):
    images = noise_images(240, size=32)
    write_cifar10(tmp_path / "cifar", images)
    counts = importing.import_cifar(tmp_path / "cifar", tmp_path / "set").counts
    assert counts == {"train": 200, "test": 40}
    config = DataConfig(name=str(tmp_path / "set"))
    test = data.open_split(config, "test")
    np.testing.assert_array_equal(test.pixels, images[200:].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(test.labels, np.arange(40) % 10)
    described = data.describe(config)
    assert (described.classes, described.train + described.validation) == (10, 200)
    assert described.validation > 0


def test_the_kind_of_a_source_is_told_by_its_files(tmp_path):
    for path in (
        *("cifar10/batches.meta", "cifar100/train", "mnist/t10k-images.idx3-ubyte", "a.npz"),
        *("arrays/1.npz", "arrays/.hidden", "photos/train/0.png", "mixed/1.npz", "mixed/0.png"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    kinds = {
        **{"cifar10": "cifar", "cifar100": "cifar", "mnist": "idx", "a.npz": "npz"},
        **{"arrays": "npz", "photos": "folder", "mixed": "folder", "nowhere": "folder"},
    }
    assert {name: importing.recognise(tmp_path / name) for name in kinds} == kinds


def test_import_cifar100(tmp_path):
    images = noise_images(3, size=32)
    rows = images.transpose(0, 3, 1, 2).reshape(3, -1)
    (tmp_path / "cifar").mkdir()
    for name in ("train", "test"):
        batch = {b"fine_labels": [99, 0, 5], b"coarse_labels": [1, 1, 1], b"data": rows}
        (tmp_path / "cifar" / name).write_bytes(python2_pickle(batch))
    names = {b"fine_label_names": [b"name %d" % number for number in range(100)]}
    (tmp_path / "cifar/meta").write_bytes(python2_pickle(names))
    importing.import_cifar(tmp_path / "cifar", tmp_path / "set")
    test = data.open_split(DataConfig(name=str(tmp_path / "set")), "test")
    assert (test.labels.tolist(), test.classes) == ([99, 0, 5], 100)
    np.testing.assert_array_equal(test.pixels, images.transpose(0, 3, 1, 2))


def test_import_cifar_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "run"),))

    write_cifar10(tmp_path / "cifar", noise_images(6, size=32))
    for payload, reason in {
        pickle.dumps({b"data": Evil()}, protocol=2): "it asks for",
        b"cbuiltins\neval\n(S'1'\ntR.": "it asks for",
        b"cnumpy\nload\n.": "it asks for numpy.load",
        b"cnumpy\ndtype\n" + b"(T\x01\0\0\0OtR.": "array of type",
        b"\x80\x02}": "is not a CIFAR batch",
        b"N.": "is not a CIFAR batch",
    }.items():
        (tmp_path / "cifar/data_batch_3").write_bytes(payload)
        with pytest.raises(UserError, match=reason):
            importing.import_cifar(tmp_path / "cifar", tmp_path / "set")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "set").exists()


def test_example_prints_what_it_says():
    script = Path(__file__).parents[2] / "examples" / "import_folder.py"
    printed = subprocess.check_output([sys.executable, script], text=True)
    assert printed.strip() in script.read_text()
    assert "10 classes" in printed


def test_a_batch_without_a_label_for_each_image_is_refused(tmp_path):
    rows = noise_images(2, size=4).reshape(2, -1)
    np.savez(tmp_path / "batch.npz", data=rows, labels=[1])
    with pytest.raises(UserError, match="has 1 labels for 2 images"):
        importing.import_npz(tmp_path / "batch.npz", tmp_path / "set")
