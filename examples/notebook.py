"""A study in a notebook: each part is a cell in VS Code, PyCharm or Jupytext.

    python examples/notebook.py studies/digits figures

Outside a notebook it writes the figures as HTML files.
"""

# %% Read a study
import sys
from pathlib import Path

import analysis

study = analysis.open(sys.argv[1] if len(sys.argv) > 1 else "studies/digits")
folder = Path(sys.argv[2] if len(sys.argv) > 2 else "figures")
study  # a table of facts # noqa: B018

# %% The best runs
best = study.runs.nsmallest(3, "bpd")[["label", "params", "images", "flops", "bpd"]]
print(best.to_string(index=False))

# %% What should four times the compute give?
prediction = study.predict(flops=4 * study.runs["flops"].max())
print(prediction)

# %% The config of that run, ready for `python -m tarflow train`
config = study.best(flops=prediction.flops)
print(config.model.channels, "channels,", config.images, "images")

# %% Figures of the page, here in both schemes
print("Figures:", ", ".join(study.figures))
folder.mkdir(parents=True, exist_ok=True)
for scheme in ("light", "dark"):
    study.plot("law", scheme).write_html(folder / f"law-{scheme}.html")
