"""What the page shows of a run that drew samples while it trained."""

import io

import pandas as pd
from PIL import Image
from synthetic import plant

from analysis.report.page import write_report
from tarflow.record import PREVIEWS, write_table


def test_the_page_shows_the_previews_of_the_best_run_that_has_some(tmp_path):
    study = plant(tmp_path / "digits", limit=4)
    write_report(study)
    assert "Samples while a run trained" not in (study / "report.html").read_text()
    runs = pd.read_parquet(study / "runs.parquet").sort_values("bpd")
    picture = io.BytesIO()
    Image.new("L", (242, 32)).save(picture, "PNG")
    rows = [
        {"images": images, "seconds": 1.0, "loss": loss, "samples": picture.getvalue()}
        for images, loss in ((1024, 0.25), (2048, -0.125))
    ]
    for run_id in runs["run_id"][1:3]:
        write_table(study / "runs" / run_id / "previews.parquet", rows, PREVIEWS)
    write_report(study)
    page = (study / "report.html").read_text()
    words = page.partition('id="previews"')[2].partition("</section>")[0]
    assert words.count("data:image/png;base64,") == 2
    assert f"{runs['channels'].iloc[1]} channels" in words
    assert "1.02k images" in words
    assert "loss of validation images -0.125" in words
