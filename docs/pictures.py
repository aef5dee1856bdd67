"""Draw the pictures of the README from a finished study, in a real browser.

    python docs/pictures.py studies/digits

Writes `report.png`, the first screen of its report, and `slider.gif`, its budget slider moving.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from analysis.report.page import write_report

HERE = Path(__file__).parent
WIDTH, HEIGHT = 1280, 1000  # pixels of the window
STEP = 2  # stops of the slider between two frames
FRAME = 350  # milliseconds
MARGIN = 16  # pixels around the slider


def first_screen(page: Page) -> Image.Image:
    """Return the first screen, with answer, samples and law."""
    return Image.open(io.BytesIO(page.screenshot()))


def moving_slider(page: Page) -> list[Image.Image]:
    """Return the slider at its stops, from the smallest budget to the recommended one and back."""
    slider = page.locator("#slider-stop")
    start = int(slider.input_value())
    box = page.locator("#slider").bounding_box()
    if box is None:
        raise SystemExit("this study has no law, so its page has no slider")
    clip = {
        "x": box["x"] - MARGIN,
        "y": box["y"] - MARGIN,
        "width": box["width"] + 2 * MARGIN,
        "height": 400 + 2 * MARGIN,
    }
    page.locator("#slider-machine").select_option("H100")
    frames = []
    for stop in [*range(start % STEP, start + 1, STEP), *[start] * 4]:
        slider.fill(str(stop))
        slider.dispatch_event("input")
        slider.blur()
        page.wait_for_timeout(200)  # the marker of the figure follows
        frames.append(Image.open(io.BytesIO(page.screenshot(clip=clip, full_page=True))))
    return frames


def main(study: Path) -> None:
    """Write the pictures of a study beside this file."""
    report = write_report(study)
    with sync_playwright() as session:
        chromium = session.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(report.resolve().as_uri())
        page.wait_for_selector("html[data-drawn]")
        first_screen(page).convert("RGB").save(HERE / "report.png", optimize=True)
        first, *rest = [frame.convert("RGB").quantize(64) for frame in moving_slider(page)]
        first.save(HERE / "slider.gif", save_all=True, append_images=rest, duration=FRAME, loop=0)
        chromium.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
