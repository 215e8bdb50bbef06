"""A report must travel alone and must not run what it quotes."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from importlib import resources

import pytest
from PIL import Image

from multimodal_gemma import reporting
from multimodal_gemma.reporting import charts
from multimodal_gemma.reporting.page import GalleryItem, Link, Page, data_uri


def test_quoted_text_stays_text() -> None:
    page = Page("<b>", "lead").section("<i>", "<script>").table(["<u>"], [["<img src=x onerror=y>"]]).pre("</pre>")
    page.gallery([GalleryItem(Image.new("RGB", (4, 4)), "'><script>", [("<a>", "good")])])
    html = page.html()
    assert "<script" not in html
    assert "<img src=x" not in html
    assert "&lt;img src=x onerror=y&gt;" in html


def test_nothing_is_fetched_from_elsewhere() -> None:
    page = Page("t", "l").figure(charts.lines({"loss": ([1, 2], [2, 1])}, "step", "loss"))
    page.thumbnails([Image.new("RGB", (9, 9), "red")])
    for address in re.findall(r"(?:src|href)=['\"]([^'\"]+)", page.html()):
        assert address.startswith(("data:image/jpeg;base64,", "#"))


def test_figures_are_right_aligned_and_words_are_not() -> None:
    html = Page("t", "l").table(["name", "share"], [["yes", 0.5], ["no", 0.25]]).html()
    assert '<td class="number">0.500</td>' in html
    assert "<td>yes</td>" in html


def test_ids_are_unique_and_still_meet_their_references() -> None:
    page = Page("t", "l")
    for _ in range(2):
        page.figure(charts.lines({"loss": ([1, 2], [2, 1])}, "step", "loss"))
    html = page.html()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', html)
    assert used
    assert set(used) <= set(ids)


def test_a_link_is_a_link_and_its_address_is_quoted() -> None:
    html = Page("t", "l").table(["run"], [[Link("<one>", 'a"b/report.html')], [Link("two")]]).html()
    assert '<a href="a&#34;b/report.html">&lt;one&gt;</a>' in html
    assert "<td>two</td>" in html


def test_a_picture_is_reduced_and_keeps_its_shape() -> None:
    uri = data_uri(Image.new("RGBA", (400, 100), "green"), max_side=200)
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert (image.size, image.mode) == ((200, 50), "RGB")


def drawn() -> list[str]:
    return [
        charts.lines({"loss": ([1, 2], [2, 1]), "validation": ([1], [1.5])}, "step", "loss"),
        charts.histogram([1, 2, 2, 3], "tokens", bins=3, marks={"median": 2}),
        charts.bars(["yes", "no"], [0.5, 0.7], "accuracy", intervals=[(0.4, 0.6), None], baselines=[0.5, 0.5]),
        charts.calibration([(0.1, 0.2, 3), (0.9, 0.8, 5)]),
        charts.confusion([[5, 1], [2, 4]], ["yes", "no"], "random"),
    ]


def test_every_chart_is_one_whole_svg_of_the_same_bytes() -> None:
    first = drawn()
    for chart in first:
        assert ElementTree.fromstring(chart).tag.endswith("svg")
        assert "max-width" in chart
    assert first == drawn()


def test_a_chart_takes_the_colours_of_its_page() -> None:
    """Colours that do not change with the page are unreadable in the dark, or need a white box around them."""
    for chart in drawn():
        words = re.findall(r"<g style=\"fill: ([^\"]+?);?\"[^>]*>|<text style=\"[^\"]*fill: ([^\"]+?);?\"", chart)
        assert words
        assert all("".join(found).startswith("var(--") for found in words)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_lies_behind(scheme: str) -> None:
    """WCAG 2.2, success criterion 1.4.3: a ratio of 4.5 at least."""
    css = (resources.files(reporting) / "page.css").read_text()
    light, dark = css.split("@media (prefers-color-scheme:dark)")
    colours = dict(re.findall(r"--(\w+): (#\w+)", light))
    if scheme == "dark":
        colours |= dict(re.findall(r"--(\w+): (#\w+)", dark))
    tinted = [mixed(colours[name], colours["paper"], 0.09) for name in ("good", "bad", "accent")]  # boxes of a graph
    deepest = mixed(colours["accent"], colours["paper"], charts._DEEPEST)  # cell of a confusion matrix
    grounds = [luminance(colours["paper"]), luminance(colours["tint"])]
    for ground in grounds:
        assert min(contrast(colours[name], ground) for name in ("ink", "soft", "accent", "good", "bad")) >= 4.5
    for name, ground in zip(("good", "bad", "accent"), tinted, strict=True):
        assert contrast(colours[name], ground) >= 4.5
    assert contrast(colours["ink"], deepest) >= 4.5


def channels(colour: str) -> list[float]:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    return [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    return weighed(channels(colour))


def weighed(values: list[float]) -> float:
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def mixed(above: str, below: str, share: float) -> float:
    """Luminance of a colour that covers another by a share."""
    return weighed([share * a + (1 - share) * b for a, b in zip(channels(above), channels(below), strict=True)])


def contrast(colour: str, ground: float) -> float:
    darker, lighter = sorted((luminance(colour), ground))
    return (lighter + 0.05) / (darker + 0.05)
