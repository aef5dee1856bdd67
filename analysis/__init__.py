"""Tables of runs to scaling laws to reports; imports neither torch nor Ray.

Three lines ask a table what it predicts; `analysis.fit` is loaded when it is first used.

>>> import analysis
>>> law = analysis.fit("runs.csv", loss="loss", params="N", tokens="D")  # doctest: +SKIP
>>> law.predict(params=7e9, tokens=2e12), law.best_size(flops=1e24)  # doctest: +SKIP
"""

from typing import Any

__all__ = ["fit"]


def __getattr__(name: str) -> Any:
    if name != "fit":
        raise AttributeError(f"module 'analysis' has no attribute '{name}'")
    from analysis.answer import fit

    return fit
