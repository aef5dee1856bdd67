"""Tables of runs to scaling laws to reports; imports neither torch nor Ray.

Each is loaded when it is first used: `analysis.fit` asks a table what it predicts, and
`analysis.open` reads a study.

>>> import analysis
>>> law = analysis.fit("runs.csv", loss="loss", params="N", tokens="D")  # doctest: +SKIP
>>> law.predict(params=7e9, tokens=2e12), law.best_size(flops=1e24)  # doctest: +SKIP
>>> study = analysis.open("studies/digits")  # doctest: +SKIP
>>> study.predict(flops=1e13), study.plot("law")  # doctest: +SKIP
"""

from typing import Any

__all__ = ["fit", "open"]


def __getattr__(name: str) -> Any:
    if name == "fit":
        from analysis.table.answer import fit

        return fit
    if name == "open":
        from analysis.notebook import open_study

        return open_study
    raise AttributeError(f"module 'analysis' has no attribute '{name}'")
