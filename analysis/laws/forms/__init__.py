"""The functional forms of scaling laws; docs/laws.md lists them."""

from analysis.laws.forms.additive import (
    CHINCHILLA,
    GAMMA_FORM,
    POWER,
    POWER_WITHOUT_FLOOR,
    TIED,
    additive,
)
from analysis.laws.forms.curves import BROKEN, SATURATING, SIGMOID
from analysis.laws.forms.form import EXPONENT, GAMMA, Array, Form, Parameter, Positions
from analysis.laws.forms.function import FunctionForm
from analysis.laws.forms.groups import GROUP, grouped
from analysis.laws.forms.registry import FORMS, check_form, find_form, shape_forms
from analysis.laws.forms.tokens import BATCH, REPEATED, REPEATED_EXCESS

FRONTIER_FORMS = (POWER_WITHOUT_FLOOR, POWER)
SURFACE_FORMS = (TIED, CHINCHILLA, GAMMA_FORM)

__all__ = [
    "BATCH",
    "BROKEN",
    "CHINCHILLA",
    "EXPONENT",
    "FORMS",
    "FRONTIER_FORMS",
    "GAMMA",
    "GAMMA_FORM",
    "GROUP",
    "POWER",
    "POWER_WITHOUT_FLOOR",
    "REPEATED",
    "REPEATED_EXCESS",
    "SATURATING",
    "SIGMOID",
    "SURFACE_FORMS",
    "TIED",
    "Array",
    "Form",
    "FunctionForm",
    "Parameter",
    "Positions",
    "additive",
    "check_form",
    "find_form",
    "grouped",
    "shape_forms",
]
