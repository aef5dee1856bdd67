"""What the report says of sample quality."""

from types import SimpleNamespace

import pandas as pd

from analysis.report.sections.quality import quality
from analysis.study.settings import SETTING


def words(kid):
    columns = dict.fromkeys(SETTING, 0.0) | {
        "feature_extractor": "e", "half": "all", "kid_se": 0.2, "n": 500, "n_reference": 500,
        "reference": "digits/validation", "name": "run", "params": 1e4, "images": 1e3,
        "tokens": 1e4, "flops": 1e9, "noise_type": "gaussian", "noise_std": 0.1, "seed": 0,
        "blocks": 2, "layers": 1, "channels": 8, "patch": 4, "lr": 0.01, "batch": 16,
        "bpd_kind": "bound", "role": "grid",
    }  # fmt: skip
    runs = pd.DataFrame({"run_id": ["a", "b", "c"], "kid": kid, "bpd": [1.0, 1.1, 1.2]})
    scored = runs.assign(**columns)
    findings = SimpleNamespace(compared=scored, correlation=None)
    real = {"feature_extractor": "e", "kid": 0.004, "kid_se": 0.02}
    return quality(SimpleNamespace(scored=scored, findings=findings, reference=real)).aid


def test_runs_are_ranked_only_beyond_their_errors():
    alike = words([5.0, 5.2, 5.1])
    assert "KID does not tell these runs apart" in alike
    assert "Lowest KID" not in alike
    assert "Real training images are at 0.004 ± 0.02, the runs at 5 to 5.2." in alike
    assert "Lowest KID: run; 1 other run may be as low." in words([5.0, 5.2, 8.0])
