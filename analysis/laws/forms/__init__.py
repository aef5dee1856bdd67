"""The functional forms of scaling laws; docs/laws.md lists them."""

from analysis.laws.forms.additive import (
    CHINCHILLA,
    GAMMA_FORM,
    POWER,
    POWER_WITHOUT_FLOOR,
    TIED,
    additive,
)
from analysis.laws.forms.form import EXPONENT, GAMMA, Array, Form, Parameter
from analysis.laws.forms.function import FunctionForm, form_of

FRONTIER_FORMS = (POWER_WITHOUT_FLOOR, POWER)
SURFACE_FORMS = (TIED, CHINCHILLA, GAMMA_FORM)

__all__ = [
    "CHINCHILLA",
    "EXPONENT",
    "FRONTIER_FORMS",
    "GAMMA",
    "GAMMA_FORM",
    "POWER",
    "POWER_WITHOUT_FLOOR",
    "SURFACE_FORMS",
    "TIED",
    "Array",
    "Form",
    "FunctionForm",
    "Parameter",
    "additive",
    "form_of",
]
