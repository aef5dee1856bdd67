"""A planted study that many tests read and none changes, written and fitted once."""

import pytest
from synthetic import plant

from analysis.study.findings import find
from analysis.study.folder import read_study


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("planted") / "digits")


@pytest.fixture(scope="session")
def digits_tables(digits):
    """Its runs and its evaluations."""
    return read_study(digits)


@pytest.fixture(scope="session")
def digits_findings(digits_tables):
    return find(*digits_tables)
