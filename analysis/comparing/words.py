"""A comparison of studies in sentences, what matters most first."""

import numpy as np

from analysis.comparing.comparison import Comparison, Contrast, EqualCompute, Reach
from analysis.comparing.differences import signed_difference
from analysis.laws.frontier import BEYOND
from analysis.laws.intervals import Interval
from tarflow.human import bits, interval, missing, number, power


def conclusions(contrast: Contrast) -> list[str]:
    """Return which study is better, by the laws and run by run; what is clear comes first."""
    lines = []
    if contrast.equal:
        clear = excludes(contrast.equal.interval, 0)
        lines.append((clear, _at_equal_compute(contrast.equal, contrast)))
    lines += [(excludes(i.interval, 1), reach_in_words(i)) for i in contrast.savings]
    if len(contrast.pairs.rows):
        lines.append((excludes(contrast.pairs.interval, 0), _run_by_run(contrast)))
    return [line for _, line in sorted(lines, key=lambda pair: not pair[0])]


def details(contrast: Contrast) -> list[str]:
    """Return how much compute the reach the other way round takes."""
    return [reach_in_words(item) for item in contrast.reaches if item not in contrast.savings]


def excludes(ends: Interval, value: float) -> bool:
    """Tell whether a value lies outside an interval."""
    return not ends[0] <= value <= ends[1]


def in_sentences(comparison: Comparison) -> list[str]:
    """Return every sentence of a comparison."""
    lines = []
    for contrast in comparison.contrasts:
        lines += [*conclusions(contrast), *details(contrast)]
    return list(dict.fromkeys([*lines, *reservations(comparison)]))


def reservations(comparison: Comparison) -> list[str]:
    """Say what the studies do not share, as far as it limits what may be compared."""
    lines = []
    for contrast in comparison.contrasts:
        one, two = contrast.first, contrast.second
        columns = ("noise_type", "noise_std", "bpd_kind", "classes")
        noise_type, noise, kind, classes = (
            [set(study.runs[column].dropna()) for study in (one, two)] for column in columns
        )
        names = f"{one.name} and {two.name}"
        if noise[0] != noise[1] or noise_type[0] != noise_type[1]:
            lines.append(
                f"{names} add different noise in training: only {one.bits_unit} of the clean "
                "image are compared, because losses at different noise are different quantities."
            )
        if kind[0] != kind[1]:
            lines.append(
                f"The {one.bits_unit} of {names} are of different kinds ("
                f"{' and '.join(sorted(kind[0] | kind[1]))}): both are lengths of a code of the "
                "clean image."
            )
        if classes[0] != classes[1]:
            lines.append(f"Of {names}, one is told the label of an image, which saves it bits.")
        if contrast.pairs.rows.empty:
            lines.append(f"{names} share no run with the same label, seed and split.")
        if contrast.equal is None:
            lines.append(
                f"{names} cannot be compared at equal compute: that needs a law of each, and "
                "budgets that overlap."
            )
    return lines


def _at_equal_compute(equal: EqualCompute, contrast: Contrast) -> str:
    one, two, unit = contrast.first.name, contrast.second.name, contrast.first.bits_unit
    at, (low, high) = f"{power(equal.flops)} FLOPs", equal.interval
    if not excludes(equal.interval, 0) and not missing(high - low):
        ends = interval(equal.interval, signed_difference)
        return (
            f"At equal compute, {at}, these runs do not tell {two} from {one}: their difference "
            f"is {signed_difference(equal.difference)} {unit} ({ends})."
        )
    better, worse = (two, one) if equal.difference < 0 else (one, two)
    ends = interval((low, high) if low > 0 else (-high, -low), difference)
    return (
        f"{better} is better than {worse} by {difference(abs(equal.difference))} {unit} ("
        f"{ends}) at equal compute, {at}."
    )


def reach_in_words(reach: Reach) -> str:
    """Say with how much compute one study reaches the best bits of another."""
    at = f"{bits(reach.bits)} {reach.bits_unit} by its law at {power(reach.flops)} FLOPs"
    goal = f"{_possessive(reach.reached)} best ({at})"
    low, high = reach.interval
    if reach.ratio == np.inf:
        least = min(reach.limit, low) if low > 0 else reach.limit
        return (
            f"The cheapest budget of {reach.reaching} reaches {goal}: it needs at least "
            f"{times(least)} less compute."
        )
    if reach.ratio == 0:
        bound = f": it takes at least {times(1 / high)} more compute" if 0 < high < 1 else ""
        return (
            f"By its law, {reach.reaching} does not reach {goal} with {BEYOND:g} times its "
            f"largest budget{bound}."
        )
    caution = f" {reach.caution}" if reach.caution else ""
    return f"{reach.reaching} reaches {goal} with {_compute(reach)}.{caution}"


def _compute(reach: Reach) -> str:
    """Return how much less or more compute a study needs, with the interval."""
    low, high = reach.interval
    if missing(low):
        return f"{_more_or_less(reach.ratio)} (too few runs for an interval)"
    if excludes(reach.interval, 1):
        return f"{_more_or_less(reach.ratio)} ({_ends(reach.interval)})"
    less = f"{times(high)} less" if np.isfinite(high) else "any amount less"
    more = f"{times(1 / low)} more" if low else "any amount more"
    return f"about the same compute: between {more} and {less}"


def _possessive(name: str) -> str:
    return name + ("'" if name.endswith("s") else "'s")


def _more_or_less(ratio: float) -> str:
    return f"{times(ratio)} less compute" if ratio >= 1 else f"{times(1 / ratio)} more compute"


def _ends(ratios: Interval) -> str:
    """Return the ends of an interval of ratios, all above 1 or all below."""
    low, high = ratios
    low, high = (low, high) if low >= 1 else (1 / high, 1 / low if low else np.inf)
    return f"{_factor(low)} or more" if np.isinf(high) else f"{_factor(low)} to {_factor(high)}"


def times(ratio: float) -> str:
    """Write a ratio with two digits.

    >>> times(1.6234), times(134.0), times(1.034)
    ('1.6x', '130x', '1.03x')
    """
    return f"{_factor(ratio)}x"


def _factor(ratio: float) -> str:
    return number(float(f"{ratio:.{3 if ratio < 1.1 else 2}g}"))


def difference(value: float) -> str:
    """Write an absolute difference in bits.

    >>> difference(0.02134)
    '0.0213'
    """
    return f"{value:.4f}"


def _run_by_run(contrast: Contrast) -> str:
    rows, mean = contrast.pairs.rows, contrast.pairs.mean
    names = (contrast.second.name, contrast.first.name)
    better, worse = names if mean < 0 else names[::-1]
    same, trained = "On the same images and noise draws, ", f"{len(rows)} runs that both trained"
    unit = contrast.first.bits_unit
    gap = f"{difference(abs(mean))} {unit}"
    low, high = contrast.pairs.interval
    if len(rows) == 1:
        return f"{same}{better} is better by {gap} in the one run that both trained."
    if not excludes((low, high), 0):
        ends = interval((low, high), signed_difference)
        return (
            f"{same}the {trained} do not tell {names[0]} from {names[1]}: on average they differ "
            f"by {signed_difference(mean)} {unit} ({ends})."
        )
    wins = int((rows["difference"] * mean > 0).sum())
    ends = interval((low, high) if mean > 0 else (-high, -low), difference)
    return (
        f"{same}{better} is better than {worse} in {wins} of the {trained}, on average by {gap} "
        f"({ends})."
    )
