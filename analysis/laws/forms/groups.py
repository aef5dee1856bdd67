"""One law for rows of several groups, such as noise levels: exponents shared, floors not."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.laws.forms.form import Array, Form, Parameter
from tarflow.errors import UserError

GROUP = "group"  # the input that numbers the group of each row, from 0


@dataclass(frozen=True, eq=False)
class Grouped(Form):
    """A form whose own parameters exist once for each group, E[0], E[1], ..."""

    form: Form | None = None
    """The form of one group."""
    places: tuple[tuple[int, ...], ...] = ()
    """By group, where the parameters of its form stand among those of this one."""

    def columns(self, inputs: Mapping[str, ArrayLike]) -> Array:
        """Return the logarithms of the inputs (k, n), and the number of the group as it is."""
        columns = super().columns(inputs)
        if not np.isin(columns[-1], np.arange(len(self.places))).all():
            raise UserError(f"{GROUP} must be a whole number from 0 to {len(self.places) - 1}")
        return columns

    def predict(self, theta: Array, logs: Array) -> Array:
        """Return the (S, n) values at inner parameters (S, p) and centred logs (k, n)."""
        values = np.full((len(theta), logs.shape[1]), np.nan)
        for form, places, rows in self._groups(logs):
            values[:, rows] = form.predict(theta[:, places], logs[:-1, rows])
        return values

    def jacobian(self, theta: Array, logs: Array) -> Array:
        """Return the (S, p, n) derivatives with respect to the inner parameters."""
        slopes = np.zeros((*theta.shape, logs.shape[1]))
        for form, places, rows in self._groups(logs):
            of_group = form.jacobian(theta[:, places], logs[:-1, rows])
            slopes[:, np.array(places)[:, None], np.flatnonzero(rows)] = of_group
        return slopes

    def starts(self, values: Array, floor: float, count: int, logs: Array | None = None) -> Array:
        """Return (count, p) starting points; those of one group are scaled to its rows."""
        if logs is None:
            logs = np.zeros((len(self.inputs), len(values)))
        out = np.empty((count, len(self.details)))
        for form, places, rows in reversed(list(self._groups(logs))):
            chosen = rows if rows.any() else np.ones_like(rows)
            out[:, places] = form.starts(values[chosen], floor, count, logs[:-1, chosen])
        return out

    def _groups(self, logs: Array) -> Iterator[tuple[Form, tuple[int, ...], NDArray[np.bool_]]]:
        assert self.form is not None
        for number, places in enumerate(self.places):
            yield self.form, places, logs[-1] == number


def grouped(form: Form, count: int, own: Sequence[str] = ("E",)) -> Grouped:
    """Return a form for rows of several groups, which the input `group` numbers from 0.

    Args:
        form: The law of one group.
        count: Number of groups.
        own: Parameters that differ between groups; the others are shared. With the coefficients
            among them, groups share exponents only.

    Raises:
        UserError: If a coefficient is shared and its exponent is not.

    >>> from analysis.laws.forms import POWER
    >>> grouped(POWER, 2).parameters
    ('E[0]', 'E[1]', 'A', 'a')
    """

    def renamed(detail: Parameter, group: int) -> Parameter:
        name = f"{detail.name}[{group}]" if detail.name in own else detail.name
        units = {
            key: f"{unit}[{group}]" if isinstance(unit, str) and unit in own else unit
            for key, unit in detail.units.items()
        }
        return replace(detail, name=name, units=units)

    shared = [detail for detail in form.details if detail.name not in own]
    if torn := [detail.name for detail in shared if {*own} & {*detail.units.values()}]:
        raise UserError(
            f"groups that do not share an exponent cannot share {', '.join(torn)}: add it to own"
        )
    details = [
        renamed(detail, group)
        for detail in form.details
        for group in range(count if detail.name in own else 1)
    ]
    position = {detail.name: at for at, detail in enumerate(details)}
    more = [name for name in own if form.role_of(name) != "floor"]
    alone = f" with own {', '.join(more)}" if more else ""
    return Grouped(
        name=f"{form.name}, {count} groups{alone}",
        formula=f"{form.formula}, with {' and '.join(own)} of each group",
        inputs=(*form.inputs, GROUP),
        details=tuple(details),
        raw=(*form.raw, GROUP),
        form=form,
        places=tuple(
            tuple(position[renamed(detail, group).name] for detail in form.details)
            for group in range(count)
        ),
    )
