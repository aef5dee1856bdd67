"""Laws of KID against likelihood and compute, from planted truths."""

import numpy as np
import pandas as pd
import pytest

from analysis.study.quality_laws import QualityLaws, compute_law, in_words, likelihood_law


def planted(kid, bpd=None, error=0.01, seed=0, scatter=1.0):
    """Runs whose KID follows a function of their bits, with its standard error."""
    bpd = np.linspace(1.4, 2.0, 24) if bpd is None else bpd
    noise = scatter * error * np.random.default_rng(seed).standard_normal(len(bpd))
    return pd.DataFrame({"bpd": bpd, "kid": kid(bpd) + noise, "kid_se": error})


def words(law):
    return in_words(QualityLaws("at one sampler setting for all", law, None))[0]


def parting(bpd):
    return 0.02 + 0.8 * np.maximum(bpd - 1.65, 0.0)


def test_the_place_where_quality_and_likelihood_part_is_found_and_said():
    laws = [likelihood_law(planted(parting, seed=seed)) for seed in range(30)]
    truths = {"place": 1.65, "above": 0.8, "below": 0.0}
    for name, truth in truths.items():
        ends = [getattr(law, f"{name}_interval") for law in laws]
        assert 22 <= sum(low < truth < high for low, high in ends) <= 30, name  # at 90%
    assert sum(law.parts for law in laws) >= 25
    law = next(law for law in laws if law.parts)
    assert "part at 1.6" in words(law)
    assert "no fall of KID can be told" in words(law)
    assert min(law.rows["kid"].min() for law in laws) < 0.01  # fitted as it is


def test_samples_that_get_worse_below_a_place_are_said_to():
    law = likelihood_law(planted(lambda bpd: 0.8 * np.abs(bpd - 1.65)))
    assert law.parts
    assert "samples get worse as bits fall" in words(law)


def test_a_line_is_not_taken_for_a_break_and_its_interval_covers():
    breaks, held = 0, 0
    for seed in range(60):
        law = likelihood_law(planted(lambda bpd: 0.3 * bpd, seed=seed, scatter=2.0))
        breaks += law.breaks
        held += law.slope_interval[0] <= 0.3 <= law.slope_interval[1]
    assert breaks <= 12  # of 60, at 10%: more happen once in 50 times
    assert 48 <= held <= 59
    assert "Nothing shows that quality and likelihood part" in words(law)


def test_what_errors_hide_is_not_said():
    hidden = [likelihood_law(planted(parting, error=0.6, seed=seed)) for seed in range(30)]
    assert sum("do not tell" in words(law) for law in hidden) >= 15
    assert sum(law.parts for law in hidden) <= 6  # at 10%
    against = likelihood_law(planted(lambda bpd: 2 - bpd))
    assert "part over all runs" in words(against)
    assert likelihood_law(planted(parting).head(5)) is None


def budgets(floor, seed, error=0.01):
    """Three seeds at each of six budgets, sizes of lowest BPD among others."""
    rng, rows = np.random.default_rng(seed), []
    for budget in range(6):
        flops = 1e10 * 4.0**budget
        for size, loss in (("good", 0.0), ("bad", 0.2)):
            for run in range(3):
                kid = floor + 0.2 * 4.0 ** (-0.5 * budget) + 3 * loss
                rows.append(
                    {
                        "run_id": f"{size}{budget}{run}", "label": size, "budget": budget,
                        "flops": flops, "params": 1.0, "tokens": flops,
                        "bpd": 2.0 - 0.1 * budget + loss, "config": f'{{"s": "{size}{budget}"}}',
                        "kid": kid + error * rng.standard_normal(), "kid_se": error,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def test_the_law_of_compute_reads_the_best_sizes_and_covers_the_floor():
    held = fall = 0
    for seed in range(30):
        rows = budgets(0.05, seed)
        law = compute_law(rows, rows)
        assert set(law.rows["label"]) == {"good"}
        held += law.floor_interval[0] <= 0.05 <= law.floor_interval[1]
        truth = 0.2 * (1 - 4.0**-2.5)
        fall += law.fall_interval[0] <= truth <= law.fall_interval[1]
    assert held >= 23  # of 30, at 90%
    assert fall >= 23
    said = in_words(QualityLaws("at one setting", None, law))[0]
    assert said.startswith("From 1 × 10¹⁰") or "training FLOPs, at one setting" in said
    assert compute_law(rows[rows["budget"] < 3], rows) is None


def test_a_flat_kid_is_not_said_to_fall():
    rows = budgets(0.05, 0).assign(kid=lambda rows: 0.01 * np.cos(rows.index) - 0.002)
    law = compute_law(rows, rows)
    assert "no clear amount" in in_words(QualityLaws("at one setting", None, law))[0]
    assert law.fall == pytest.approx(0.0, abs=0.01)
