"""The fields of a config: what each means, what people call it elsewhere, and how to change one.

A field's comment in the source is its only description: YAML files and `--help` show it too.
"""

import ast
import inspect
import math
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, get_args, get_origin

import yaml

from tarflow.errors import ConfigError

COUNT, SIZE = "it must be 0 or more", "it must be at least 1"

# Names that other programs use, and the fields that mean the same: the first one that the config
# has. Runs count images; studies derive them from their budgets.
SYNONYMS = {
    "optim.lr": "learning_rate learningrate rate step_size max_lr peak_lr",
    "optim.weight_decay": "wd decay l2 weightdecay",
    "optim.clip": "grad_clip clip_grad max_norm max_grad_norm gradient_clipping grad_norm",
    "optim.beta1": "betas momentum",
    "optim.warmup_images": "warmup warmup_steps warm_up",
    "optim.ema": "ema_decay averaging",
    "optim.label_drop": "dropout label_dropout cfg_dropout drop",
    "optim.schedule": "scheduler lr_schedule lr_scheduler",
    "model.channels": "width d_model dim hidden hidden_size hidden_dim embed_dim n_embd",
    "model.layers": "depth n_layers num_layers n_layer layers_per_block",
    "model.blocks": "n_blocks num_blocks flows n_flows num_flows",
    "model.head_dim": "heads n_heads num_heads head_size",
    "model.patch": "patch_size",
    "model.classes": "num_classes n_classes labels nclasses",
    "model.image_size": "resolution img_size image_width",
    "model.image_channels": "in_channels img_channels colours colors",
    "noise.std": "sigma noise_std noise_level noise_sigma",
    "data.name": "dataset data_path data_dir",
    "data.flip": "hflip mirror augment augmentation",
    "sampler.guidance": "cfg cfg_scale guidance_scale guidance_weight",
    "sampler.temperature": "temp attn_temp attention_temperature",
    "sampler.denoise": "denoising",
    "evaluation.samples": "n_samples num_samples fid_samples",
    "evaluation.features": "extractor feature_extractor",
    "execution.workers": "gpus num_workers world_size nproc",
    "execution.micro_batch": "grad_accum accumulation gradient_accumulation micro_batch_size",
    "execution.sharding": "fsdp",
    "execution.checkpoint_activations": "activation_checkpointing grad_checkpointing remat",
    "batch": "batch_size batchsize bs global_batch global_batch_size",
    "budgets images": "epochs steps iterations iters max_steps n_steps budget flops compute",
    "seeds seed": "random_seed n_seeds num_seeds",
    "precision": "dtype amp bf16 mixed_precision",
}

TYPES = {  # by the first word of pydantic's name for the mistake
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "literal": "another word",
    "tuple": "a list",
    "dataclass": "a mapping of its fields",
}


@cache
def descriptions(kind: Any) -> Mapping[str, str]:
    """Return what each field of a config means, by its name.

    It is the comment behind the field in the source, or for a nested config the first line of its
    docstring. Fields without either are left out, and so are all if there is no source.
    """
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except OSError:
        return {}
    lines, body = source.splitlines(), ast.parse(source).body[0]
    bases: list[Any] = [base for base in kind.__bases__ if is_dataclass(base)]
    found = {name: text for base in bases for name, text in descriptions(base).items()}
    for node in getattr(body, "body", ()):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            if comment := re.search(r"  # (.+)$", text, re.MULTILINE):
                found[node.target.id] = comment[1]
    for member in fields(kind):
        if is_dataclass(member.type) and member.name not in found:
            found[member.name] = (member.type.__doc__ or "").partition("\n")[0].rstrip(".")
    return found


def explained(kind: Any, plain: Mapping[str, Any]) -> str:
    """Return a config, given as nested dictionaries, as YAML with a comment behind every field."""
    text = ""
    for member in fields(kind):
        described, value = descriptions(kind).get(member.name, ""), plain[member.name]
        words = choices(member.type)
        if any(word not in described for word in words):
            described = f"{described} ({', '.join(words)})".strip()
        comment = f"  # {described}" * bool(described)
        if is_dataclass(member.type):
            inner = textwrap.indent(explained(member.type, value), "  ")
            text += f"{member.name}:{comment}\n{inner}"
            continue
        first, _, rest = yaml.safe_dump(
            {member.name: value}, sort_keys=False, width=math.inf
        ).partition("\n")
        if rest and not first.endswith(":"):  # text of several lines
            text += f"{comment.strip()}\n{first}\n{rest}"
        else:
            text += f"{first}{comment}\n{rest}"
    return text


def leaves(kind: Any) -> Mapping[str, tuple[Any, str]]:
    """Return the type and the description of every field of a config, by path.

    The fields of the items of a list have a star for its index, such as `sizes.*.channels`.
    """
    return {path: (member, text) for path, member, text in _walk(kind, "")}


def _walk(kind: Any, prefix: str) -> Iterator[tuple[str, Any, str]]:
    for member in fields(kind):
        path, described = prefix + member.name, descriptions(kind).get(member.name, "")
        yield path, member.type, described
        if is_dataclass(member.type):
            yield from _walk(member.type, f"{path}.")
        for inner in get_args(member.type):
            if is_dataclass(inner):
                star = ".*." if get_origin(member.type) is tuple else "."
                yield from _walk(inner, path + star)


def unknown(path: str, known: Collection[str]) -> str:
    """Say that no field has this path, and which one is meant or which there are.

    >>> unknown("learning_rate", ["optim", "optim.lr", "batch"])
    "unknown key 'learning_rate'; did you mean 'optim.lr'?"
    >>> unknown("optim.xyz", ["optim", "optim.lr", "batch"])
    "unknown key 'optim.xyz'; optim has: lr"
    >>> unknown("optim.lr:0.02", ["optim", "optim.lr", "batch"])
    "unknown key 'optim.lr:0.02'; optim has: lr"
    """
    if near := nearest(path, known):
        return f"unknown key '{path}'; did you mean '{near}'?"
    section = path
    inside: list[str] = []
    while section and not inside:
        section = section.rpartition(".")[0]
        inside = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section]
    return f"unknown key '{path}'; {section or 'the config'} has: {', '.join(inside)}"


def nearest(path: str, known: Collection[str]) -> str:
    """Return the field that a mistaken path means, by meaning first and then by spelling.

    >>> nearest("model.width", ["model", "model.channels", "model.layers"])
    'model.channels'

    Args:
        path: What was written; an index in it is a number.
        known: Paths that there are, with a star for every index.

    Returns:
        One of the paths, with the indices that were written; empty if none is near.
    """
    indices = re.findall(r"\.(\d+)(?=\.)", path)
    section, _, name = re.sub(r"\.\d+(?=\.)", ".*", path).rpartition(".")
    name = name.lower().replace("-", "_")
    beside = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    others = {key.rpartition(".")[2]: key for key in reversed(list(known)) if "*" not in key}
    found = ""
    for field in synonyms(name):
        ends = [key for key in known if "*" not in key and f".{key}".endswith(f".{field}")]
        found = found or beside.get(field.rpartition(".")[2], "") or next(iter(ends), "")
    found = found or beside.get(name, "") or others.get(name, "")
    for names in (beside, others):
        close = get_close_matches(name, names, n=1)
        found = found or (names[close[0]] if close else "")
    for index in indices:
        found = found.replace("*", index, 1)
    return found


def synonyms(name: str) -> list[str]:
    """Return the fields that a name from elsewhere may mean, the likeliest first.

    >>> synonyms("epochs"), synonyms("lr")
    (['budgets', 'images'], [])
    """
    meant = (fields.split() for fields, names in SYNONYMS.items() if name in names.split())
    return next(meant, [])


def merged(plain: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dictionaries with the values of others put in their places.

    >>> merged({"noise": {"type": "gaussian", "std": 0.1}}, {"noise": {"std": 0.2}})
    {'noise': {'type': 'gaussian', 'std': 0.2}}
    """
    result = {**plain}
    for name, value in change.items():
        inner = isinstance(value, Mapping) and isinstance(plain.get(name), Mapping)
        result[name] = merged(plain[name], value) if inner else value
    return result


def must_be(kind: Any, path: str, error: str) -> tuple[str, str] | None:
    """Return the field that has a value of the wrong type, and what it must be.

    Args:
        kind: Config.
        path: Path of the value; pydantic ends it with the option of a union that it tried.
        error: Name of pydantic's error, such as `int_parsing`.

    Returns:
        Its path and what it must be; None for an error of another kind.
    """
    rule = TYPES.get(error.partition("_")[0])
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        star = ".".join("*" if part.isdigit() else part for part in parts[:end])
        if rule and star in leaves(kind):
            words = choices(leaves(kind)[star][0])
            end += parts[end : end + 1] != [] and parts[end].isdigit()  # an item of a list
            return ".".join(parts[:end]), " or ".join(words) if words else rule
    return None


def choices(kind: Any) -> Sequence[str]:
    """Return the words that a field may hold, if its type lists them.

    >>> choices(Literal["auto"] | Literal["float32", "float64"]), choices(int)
    (('auto', 'float32', 'float64'), ())
    """
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(word for option in get_args(kind) for word in choices(option))


def check_fields(section: str, config: object, **rules: tuple[bool, str]) -> None:
    """Refuse the first field that breaks its rule, or is a number that no table can hold.

    Args:
        section: Name of the config inside that of the run; empty for the outermost one.
        config: Config to check.
        **rules: For each field, whether its value is right, and what to write.

    Raises:
        ConfigError: If a value is wrong, naming the field.
    """
    fit = {
        name: (math.isfinite(value), "it must be a finite number")
        if isinstance(value, float)
        else (abs(value) < 2**63, "it must be below 2**63")
        for name, value in vars(config).items()
        if isinstance(value, int | float)
    }
    for name, (holds, rule) in [*fit.items(), *rules.items()]:
        if not holds:
            path = f"{section}.{name}" if section else name
            raise ConfigError(f"{path} is {getattr(config, name)!r}: {rule}")
