"""A law is believed only when it predicts: roll-outs, coverage, influence and choice of form."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rollout:
    """One run predicted by a law fitted to cheaper (smaller, shorter) runs only."""

    form: str
    axis: str  # what the window grows along: flops, params or tokens
    cutoff: float  # largest value of the axis the fit has seen
    rows: int  # rows the fit has seen
    row: int  # position of the predicted row in the table
    distance: float  # ln(compute of the row / largest compute seen); 0 if not beyond
    predicted: float
    interval: tuple[float, float]  # 90% band without the roll-outs' own discrepancy term
    achieved: float

    @property
    def error(self) -> float:
        """Relative error, predicted / achieved - 1."""
        return self.predicted / self.achieved - 1


@dataclass(frozen=True)
class Score:
    """How a form did in the roll-outs."""

    form: str
    parameters: int
    rollouts: int
    error: float  # root mean square of the relative roll-out errors
    error_se: float  # its standard error over windows
    aicc: float  # shown, not decisive; nan if undefined
    bic: float
    chosen: bool


@dataclass(frozen=True)
class Baseline:
    """What a guess without a law would have scored on the same roll-outs."""

    name: str  # "repeat the last value" or "log-linear"
    rollouts: int
    error: float  # root mean square of the relative errors


@dataclass(frozen=True)
class Coverage:
    """How often a band held what it promised on the roll-outs."""

    band: str  # "parameters and noise", or "with discrepancy"
    level: float  # promised
    inside: int
    total: int

    @property
    def achieved(self) -> float:
        """Share of roll-outs inside the band."""
        return self.inside / self.total if self.total else float("nan")


@dataclass(frozen=True)
class Influence:
    """What leaving one run out changes."""

    row: int  # position in the table
    cluster: str  # the run that is left out
    change: float  # relative change of the prediction at the largest compute of the table
    parameter: str  # the parameter that moves most
    parameter_change: float  # in units of half its interval
