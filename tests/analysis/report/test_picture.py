"""The law as a picture that needs no browser."""

import io

import pytest
from PIL import Image
from synthetic import plant

from analysis.report.figures import theme
from analysis.report.page import write_report
from analysis.report.picture import png_of


def drawn(*traces, x=(1e9, 1e10, 1e11)):
    figure = theme.figure("training FLOPs", "bits per dimension")
    figure.add_traces(traces).update_xaxes(theme.log_axis(x))
    return Image.open(io.BytesIO(png_of(figure)))


def has(image, colour):
    """Tell whether a picture has a pixel of about this colour."""
    colours = (found for _, found in image.convert("RGB").getcolors(1 << 20))
    return any(
        max(abs(a - b) for a, b in zip(found, colour, strict=True)) < 12 for found in colours
    )


@pytest.mark.parametrize("symbol", [*theme.SYMBOLS, "star"])
def test_every_mark_is_drawn(symbol):
    marks = theme.marker(theme.ORANGE, symbol, 17)
    assert has(drawn(theme.points([1e9], [1.0], "a", marker=marks)), (0xD5, 0x5E, 0x00))


def test_a_band_is_transparent_and_what_lies_outside_the_axes_is_left_out():
    x, low, high = [1e9, 1e11], [1.0, 1.0], [3.0, 3.0]
    band = theme.band(*map(theme.np.array, (x, low, high)), "rgba(255, 0, 0, 0.5)", "band")
    far = theme.points([1e30], [5000.0], "a", marker=theme.marker(theme.ORANGE))
    image = drawn(band, far)
    assert has(image, (255, 127, 127))
    assert image.tobytes() == drawn(band).tobytes()


def test_an_interval_without_bound_is_not_drawn():
    bars = theme.around([2.0], [(2.0, float("inf"))], theme.ORANGE)
    image = drawn(theme.points([1e10], [2.0], "a", marker=theme.marker("#00ff00"), error_y=bars))
    assert has(image, (0, 255, 0))
    assert not has(image, (0xD5, 0x5E, 0x00))


@pytest.mark.parametrize("limit", [1, 8])
def test_a_study_gets_the_picture_beside_its_page(tmp_path, limit):
    study = plant(tmp_path / "digits", limit=limit)
    write_report(study)
    with Image.open(study / "law.png") as image:
        assert has(image, (0, 0x72, 0xB2)) == (limit == 8)  # a law needs several runs
