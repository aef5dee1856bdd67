"""Draw the pictures of the gallery: run every example, and keep its picture or what it prints.

    python docs/gallery.py studies/digits

Takes minutes on one core. Pictures are written to `docs/gallery/`.
"""

import html
import io
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

import analysis
import tarflow
from tarflow.__main__ import main as command

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
SIDE = 720  # pixels of a picture at most
TERMINAL = (
    "<body style='margin:0'><pre style='margin:0;padding:20px;width:max-content;font-size:15px;"
    "line-height:1.5;background:#1e1e2e;color:#e4e4ef'>{}</pre>"
)


def keep(picture: Image.Image, name: str) -> None:
    """Write a picture for the page, at most `SIDE` pixels wide and with few colours."""
    picture.thumbnail((SIDE, SIDE))
    picture.convert("RGB").quantize(64).save(HERE / "gallery" / f"{name}.png", optimize=True)


def printed(chromium: Browser, name: str, *arguments: object) -> None:
    """Run an example and draw what it prints."""
    words = ["examples/" + f"{name}.py", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    process = subprocess.run(
        [sys.executable, *words],
        cwd=HERE.parent,
        env=environment,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    )
    page = chromium.new_page(viewport={"width": 1600, "height": 900})
    lines = [line[:100] for line in process.stdout.strip().splitlines()[-12:]]
    page.set_content(TERMINAL.format(html.escape("\n".join([f"$ python {words[0]} ...", *lines]))))
    keep(Image.open(io.BytesIO(page.locator("pre").screenshot())), name)
    page.close()


def main(study: Path, work: Path) -> None:
    """Draw a picture for every example, from a finished study of digits."""
    run = study / "runs" / analysis.open(study).runs.nsmallest(1, "bpd")["run_id"].item()
    with sync_playwright() as session:
        chromium = session.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        printed(chromium, "custom_law")
        printed(chromium, "compare_images")
        printed(chromium, "score_images", run / "model.safetensors")
        printed(chromium, "release", run, work / "digits-flow")
        printed(chromium, "search_digits")

        printed(chromium, "notebook", study, work)
        page = chromium.new_page(viewport={"width": SIDE, "height": 480})
        page.goto((work / "law-light.html").as_uri())
        page.wait_for_selector("svg.main-svg .trace path")
        keep(Image.open(io.BytesIO(page.screenshot())), "notebook")
        chromium.close()

    keep(tarflow.load(run).sample(40, guidance=1).grid(columns=10), "model")

    example = runpy.run_path(str(EXAMPLES / "import_folder.py"))
    example["paint"](work / "pictures")
    source, table, preview = (str(work / name) for name in ("pictures", "leaves", "preview.png"))
    command(["data", source, table, "--size", "32", "--preview", preview])
    keep(Image.open(preview), "import_folder")

    completed = work / "completed.png"
    runpy.run_path(str(EXAMPLES / "posterior.py"))["main"](str(run), str(completed))
    keep(Image.open(completed), "posterior")

    runpy.run_path(str(EXAMPLES / "conditions.py"))["main"](work / "conditions", 64_000)
    keep(Image.open(work / "conditions" / "samples.png"), "conditions")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1]).resolve(), Path(folder))
