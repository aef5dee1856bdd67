"""Studies that take seconds, for tests that carry them out."""

from dataclasses import replace

import pytest

from sweeps.design.presets import load
from sweeps.design.study import Point, Size
from tarflow.config_files import to_yaml
from tarflow.record import read_table


def wee(name, **changes):
    """Return a study of four runs, each a second or so."""
    study = load("tiny")
    base = replace(
        study.base,
        model=replace(study.base.model, patch=14, channels=8),
        evaluation=replace(study.base.evaluation, decoder_images=64, samples=0),
        execution=replace(study.base.execution, checkpoint_seconds=0.2, report_seconds=0.2),
    )
    return replace(
        study,
        name=name,
        base=base,
        sizes=(Size(channels=8, blocks=2, layers=1), Size(channels=16, blocks=2, layers=1)),
        budgets=(2e8,),
        held_out=Point(size="c8-b2-l1", budget=4e9),
        replicated=Point(size="c8-b2-l1", budget=2e8),
        **changes,
    )


def with_ray(test):
    return pytest.mark.ray(pytest.mark.usefixtures("local_ray")(test))


def write_study(folder, study):
    path = folder / f"{study.name}.yaml"
    path.write_text(to_yaml(study))
    return path


def rows(out):
    return {row["run_id"]: row for row in read_table(out / "runs.parquet").to_pylist()}
