"""Names of runs and of sampler settings: hashes of everything that changes their numbers."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from tarflow.config import RunConfig
from tarflow.config_files import to_dict
from tarflow.errors import ConfigError

NOT_HASHED = ("sampler", "evaluation", "execution")
LATER = {  # fields that came after the first release, with the values that are not hashed
    "optim": {"optimizer": "adamw", "base_channels": 0, "output_penalty": 0.0},
    "model": {
        "first_block": "forwards",
        "start_token": False,
        "scale": "exp",
        "soft_clip": 0.0,
        "final_norm": False,
        "positions": "learned",
        "token_order": "channel-first",
        "condition_tokens": 0,
        "condition_dim": 0,
        "conditioned": "all",
    },
}
UNKNOWN = "unknown"  # hash of data that are not here, in the plan of a dry run
HALVES = ("chosen", "scored")  # one half of the samples makes a choice, the other scores it
WHOLE = ("all", *HALVES)  # all samples are scored together, and the halves as well


def run_id(config: RunConfig) -> str:
    """Return the name of a run, a hash of its config: equal configs are the same run.

    The hash covers every field of the first release except `NOT_HASHED`. A later field enters
    only when it differs from its default, so that old runs keep their names.

    Raises:
        ConfigError: If the precision or the data hash has not been resolved yet.
    """
    if config.precision == "auto" or not config.data.hash:
        raise ConfigError("a run has a name only after its precision and data hash are resolved")
    plain = {key: value for key, value in to_dict(config).items() if key not in NOT_HASHED}
    plain["data"].pop("name")  # data that moved keeps its hash
    for section, defaults in LATER.items():
        for name, value in defaults.items():
            if plain[section][name] == value:
                plain[section].pop(name)
    if config.noise.type == "uniform":
        plain["noise"].pop("std")
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def setting_id(config: RunConfig, seed: int, parts: Sequence[str] = WHOLE) -> str:
    """Return the name of a sampler setting, a hash of everything that changes its scores.

    Args:
        config: Run, with its sampler setting replaced by the one to name.
        seed: Seed of the noise that becomes samples.
        parts: `WHOLE`, or `HALVES` where all samples are not scored together.
    """
    evaluation = config.evaluation
    settings = [evaluation.split, evaluation.samples, evaluation.features, seed]
    settings += [] if tuple(parts) == WHOLE else parts
    settings += [f"autoencoder {evaluation.autoencoder}"] if evaluation.autoencoder else []
    text = json.dumps([to_dict(config.sampler), *settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def with_hash(config: RunConfig, data_hash: str) -> RunConfig:
    """Return the config with the content hash of its data filled in."""
    return replace(config, data=replace(config.data, hash=data_hash))
