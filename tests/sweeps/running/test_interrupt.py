import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
from small_studies import wee, write_study


@pytest.mark.ray
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_kill_again_and_again_is_one_line(tmp_path, sent):
    study = replace(wee("wee"), budgets=(1e12,), held_out=None, replicated=None)  # minutes long
    out = tmp_path / "out"
    command = [sys.executable, "-m", "sweeps.scaling", write_study(tmp_path, study), "--yes"]
    listen = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # a job in the background does not
    with subprocess.Popen(
        [*command, "--out", out],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen,
    ) as driver:
        deadline = time.monotonic() + 120
        while not list(out.glob("runs/*/config.yaml")) and driver.poll() is None:
            if time.monotonic() > deadline:
                driver.kill()
            time.sleep(0.1)
        while driver.poll() is None:
            driver.send_signal(sent if time.monotonic() < deadline else signal.SIGKILL)
            time.sleep(0.2)
        errors = driver.stderr.read()
    assert driver.returncode in (128 + sent, -sent)
    assert errors == "stopped; run the same command again to resume\n"
