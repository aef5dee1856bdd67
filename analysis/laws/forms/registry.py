"""Forms by name: those of the package, and custom ones in a file."""

import importlib.util
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from analysis.laws.forms.additive import (
    CHINCHILLA,
    GAMMA_FORM,
    POWER,
    POWER_WITHOUT_FLOOR,
    TIED,
    additive,
)
from analysis.laws.forms.curves import BROKEN, SATURATING, SIGMOID
from analysis.laws.forms.form import Form
from analysis.laws.forms.tokens import BATCH, REPEATED, REPEATED_EXCESS
from tarflow.errors import UserError

SHAPE = ("width", "depth", "blocks", "params", "tokens")  # inputs of the additive forms, in order
FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        POWER_WITHOUT_FLOOR,
        POWER,
        SATURATING,
        SIGMOID,
        BROKEN,
        TIED,
        CHINCHILLA,
        GAMMA_FORM,
        REPEATED,
        REPEATED_EXCESS,
        BATCH,
        additive("width and depth", "width", "depth", "tokens"),
        additive("shape", "width", "depth", "blocks", "tokens"),
        additive("shape and size", "width", "depth", "params", "tokens"),
    )
}


def shape_forms(inputs: Sequence[str]) -> tuple[Form, ...]:
    """Return nested additive forms of the shape of a model, the smallest first.

    Args:
        inputs: Columns that vary in a table, of width, depth, blocks, params and tokens.

    >>> [form.inputs for form in shape_forms(["params", "tokens", "width"])]
    [('params', 'tokens'), ('width', 'params', 'tokens')]
    """
    shape = [name for name in SHAPE[:-2] if name in inputs]
    rest = [name for name in SHAPE[-2:] if name in inputs]
    forms = []
    for count in range(len(shape) + 1):
        chosen = [*shape[:count], *rest]
        if chosen:
            forms.append(additive(f"additive in {', '.join(chosen)}", *chosen))
    return tuple(forms)


def find_form(name: str) -> Form:
    """Return the form of a name, or of a file, `path/to/file.py:NAME`.

    Raises:
        UserError: If there is no such form, or a form of a file is not what it says.

    >>> find_form("chinchilla").formula
    'E + A / N^a + B / D^b'
    """
    if name in FORMS:
        return FORMS[name]
    path, _, variable = name.rpartition(":")
    if path.endswith(".py"):
        return _of_file(Path(path), variable)
    close = get_close_matches(name, FORMS, 1, 0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    known = ", ".join(map(repr, FORMS))
    raise UserError(f"no form {name!r}: {hint}The forms are {known}, or path/to/file.py:NAME")


def _of_file(path: Path, variable: str) -> Form:
    if not path.is_file():
        raise UserError(f"no file {path} to read the form {variable} from")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise UserError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    form = getattr(module, variable, None)
    if not isinstance(form, Form):
        forms = [key for key, value in vars(module).items() if isinstance(value, Form)]
        raise UserError(f"{path} has no form {variable}: it has {', '.join(forms) or 'none'}")
    check_form(form)
    return form


def check_form(form: Form) -> None:
    """Try a form on made-up rows.

    Raises:
        UserError: If it cannot be evaluated, or if dividing an input by a constant changes the law
            by more than the units of its parameters say.
    """
    _check_details(form)
    rng = np.random.default_rng(0)
    logs = rng.uniform(-1, 1, (len(form.inputs), 8))
    logged = np.array([name not in form.raw for name in form.inputs])
    shift = np.where(logged, 1.0, 0.0)
    logs[~logged] = np.arange(8) % 2
    try:
        theta = form.starts(np.linspace(1.5, 4.0, 8), 0.0, 8, logs)
        values, slopes = form.predict(theta, logs), form.jacobian(theta, logs)
    except Exception as error:  # whatever the user's function raises
        message = f"{type(error).__name__}: {error}"
        raise UserError(f"the form {form.name} cannot be evaluated: {message}") from error
    if not np.isfinite(values).all() or not np.isfinite(slopes).all():
        raise UserError(f"the form {form.name} is not finite for ordinary inputs")
    for at, name in enumerate(form.inputs):
        by = shift * (np.arange(len(shift)) == at)
        moved = form.predict(form.recentred(theta, by), logs + by[:, None])
        if not np.allclose(moved, values, rtol=1e-9):
            raise UserError(
                f"the form {form.name} changes with the unit of {name}: give the units of every "
                f"parameter that scales with it, or list {name} in raw"
            )


def _check_details(form: Form) -> None:
    for detail in form.details:
        names = [unit for unit in detail.units.values() if isinstance(unit, str)]
        strange = [name for name in names if name not in form.parameters]
        strange += [name for name in detail.units if name not in form.inputs or name in form.raw]
        if strange:
            raise UserError(f"the form {form.name}: units of {detail.name} name {strange[0]!r}")
        if detail.role == "constant" and not (detail.low and detail.high):
            raise UserError(f"the form {form.name}: give {detail.name} a low and a high above 0")
