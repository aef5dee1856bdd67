"""Vectors to condition on: read from tables, dropped, encoded from captions, and used by a run."""

import runpy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_files import noise_images, png, write

from tarflow import data
from tarflow.__main__ import main
from tarflow.config import DataConfig
from tarflow.data.conditions import DROPPED, read_conditions, stored_dropped
from tarflow.data.text import encode_captions
from tarflow.errors import UserError
from tarflow.model.weights import load_model
from tarflow.model_config import ModelConfig

pytestmark = pytest.mark.usefixtures("cache")

SPLIT = ["train", "val", "test"] * 4
BLOBS = [png(image) for image in noise_images(12)]


def vectors_of(shape):
    return np.random.default_rng(0).normal(size=(12, *shape)).astype("float32")


@pytest.mark.parametrize("shape", [(5,), (3, 5)])
@pytest.mark.parametrize("fixed", [False, True])
def test_conditions_come_back_with_their_images(tmp_path, shape, fixed):
    vectors = vectors_of(shape)
    kind = pa.float32()
    for size in shape[::-1]:
        kind = pa.list_(kind, size) if fixed else pa.list_(kind)
    column = pa.array(vectors.tolist(), kind)
    config = write(tmp_path / "a.parquet", BLOBS, split=SPLIT, condition=column)
    found = data.describe(config)
    assert (found.condition_tokens, found.condition_dim) == (1, *shape)[-2:]
    model = ModelConfig(condition_tokens=found.condition_tokens, condition_dim=5)
    images = data.open_split(config, "validation")
    expected = vectors[1::3].reshape(4, -1, 5)
    np.testing.assert_array_equal(images.condition(np.array([3, 0]), model), expected[[3, 0]])
    assert not images.dropped.any()
    assert images.condition(np.array([0]), ModelConfig()) is None


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ([[1.0, 2.0]] * 11 + [[1.0]], "must all have one shape"),
        ([[1.0, 2.0]] * 11 + [None], "must all have one shape, without gaps"),
        ([[1.0, float("nan")]] * 12, "not finite"),
        ([1.0] * 12, "the column 'condition' is double; write a list of numbers"),
        ([["a"]] * 12, "the column 'condition' is list<"),
    ],
)
def test_wrong_conditions_are_refused(tmp_path, column, words):
    config = write(tmp_path / "a.parquet", BLOBS, split=SPLIT, condition=column)
    with pytest.raises(UserError, match=words):
        data.open_split(config, "train")


class Counter:
    """An encoder that writes how long a text is, and remembers what it saw."""

    def __call__(self, texts):
        return np.array([[[len(text), 1.0]] * 3 for text in texts], np.float32)


def test_captions_become_conditions(tmp_path):
    captions = [f"caption {'!' * number}" for number in range(12)]
    write(tmp_path / "a.parquet", BLOBS, split=SPLIT, caption=captions)
    table = encode_captions(str(tmp_path / "a.parquet"), tmp_path / "b", Counter())
    assert table.condition_shape == (3, 2)
    assert table.dropped_condition.tolist() == [[0.0, 1.0]] * 3
    images = data.open_split(DataConfig(name=str(tmp_path / "b")), "test")
    assert images.vectors[:, 0, 0].tolist() == [len(text) for text in captions[2::3]]
    assert images.pixels[0].tolist() == noise_images(12)[2].transpose(2, 0, 1).tolist()
    with pytest.raises(UserError, match="exists; remove it"):
        encode_captions(str(tmp_path / "a.parquet"), tmp_path / "b", Counter())
    with pytest.raises(UserError, match="has no column 'text': image, split, caption"):
        encode_captions(str(tmp_path / "a.parquet"), tmp_path / "c", Counter(), "text")
    assert not (tmp_path / "c").exists()


def test_a_local_t5_encodes_captions(tmp_path, capsys):
    transformers = pytest.importorskip("transformers", reason="needs the extra text")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", "red", "car"))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    folder = tmp_path / "t5"
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(
        folder
    )
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 5}
    torch.manual_seed(0)
    encoder = transformers.T5EncoderModel(transformers.T5Config(**sizes)).eval()
    encoder.save_pretrained(folder)
    write(tmp_path / "a.parquet", BLOBS, split=SPLIT, text=["red car", "car"] * 6)
    command = ["data", "text", str(tmp_path / "a.parquet"), str(tmp_path / "b")]
    assert main([*command, "--encoder", str(folder), "--tokens", "4"]) == 0
    vectors, dropped = read_conditions(next((tmp_path / "b").glob("*.parquet")))
    ids, mask = torch.tensor([[3, 4, 0, 0]]), torch.tensor([[1, 1, 0, 0]])
    with torch.no_grad():
        states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[0]
    np.testing.assert_allclose(vectors[0, :2], states[:2].numpy(), atol=1e-6)
    assert not vectors[0, 2:].any()
    assert dropped.shape == (4, 8)
    assert main([*command[:-1], str(tmp_path / "c"), "--encoder", str(tmp_path / "none")]) == 2
    assert "is no folder: give one that save_pretrained wrote" in capsys.readouterr().err


def test_the_example_trains_samples_and_scores_with_conditions(tmp_path, capsys):
    script = Path(__file__).parents[2] / "examples" / "conditions.py"
    folder = tmp_path / "captioned"
    runpy.run_path(str(script))["main"](folder, 1280)
    assert (folder / "samples.png").stat().st_size > 1000
    model = str(folder / "run" / "model.safetensors")
    _, config = load_model(Path(model))
    assert (config.model.condition_tokens, config.model.condition_dim) == (2, 16)
    capsys.readouterr()
    wanted = str(folder / "wanted.parquet")
    assert main(["score", model, "--conditions", wanted, "--show", "2"]) == 0
    assert "p(class)" in capsys.readouterr().out
    assert main(["check", model]) == 0
    assert main(["score", model, "--posterior"]) == 2
    assert "give candidates with --conditions" in capsys.readouterr().err
    table = pq.read_table(wanted)
    kept = table.replace_schema_metadata(
        {DROPPED: stored_dropped(np.full((2, 16), 0.5, "float32"))}
    )
    pq.write_table(kept, wanted)
    assert read_conditions(Path(wanted))[1].mean() == 0.5
