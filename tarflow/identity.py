"""Names of runs and of ways to sample from them: hashes of all that shapes their numbers."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from tarflow.config import RunConfig, to_dict
from tarflow.errors import ConfigError

NOT_HASHED = ("sampler", "evaluation", "execution")
WHOLE = ("all",)  # samples that are scored together
HALVES = ("chosen", "scored")  # of the draws: one to choose a setting on, one to judge it


def run_id(config: RunConfig) -> str:
    """Name a run by what it computes: equal configs are the same run.

    Every field of the first release is hashed but for `NOT_HASHED`. A field that is added later
    enters the hash only when it is off its default, so that old runs keep their names.

    Raises:
        ConfigError: if the precision or the data hash has not been resolved yet.
    """
    if config.precision == "auto" or not config.data.hash:
        raise ConfigError("a run has a name only after its precision and data hash are resolved")
    plain = {key: value for key, value in to_dict(config).items() if key not in NOT_HASHED}
    plain["data"].pop("name")  # where the images lie; the hash says which they are
    if config.optim.optimizer == "adamw":
        plain["optim"].pop("optimizer")
    if not config.optim.base_channels:
        plain["optim"].pop("base_channels")
    if config.noise.type == "uniform":
        plain["noise"].pop("std")
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def setting_id(config: RunConfig, seed: int, halves: Sequence[str] = WHOLE) -> str:
    """Name a way to sample from a run by the hash of all that shapes its scores.

    Args:
        config: of the run, with the sampler in question.
        seed: of the samples' noise.
        halves: names of the parts of the draws that are scored apart.
    """
    evaluation = config.evaluation
    named = [evaluation.split, evaluation.samples, evaluation.features, seed]
    named += [] if tuple(halves) == WHOLE else halves
    text = json.dumps([to_dict(config.sampler), *named], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def with_hash(config: RunConfig, data_hash: str) -> RunConfig:
    """Return the config with the content hash of its data filled in."""
    return replace(config, data=replace(config.data, hash=data_hash))
