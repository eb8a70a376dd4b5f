"""The figures: well-formed SVG whose marks stand where the numbers say. (How they look was judged by eye.)"""

import re
from xml.etree import ElementTree

import pytest

from proxy_jax.metrics import comparison, figures
from proxy_jax.metrics.figures import Mean, Scale
from tests.metrics.made_accounts import told

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ElementTree.Element:
    """Raises if it is not XML, or if a number in it is none."""
    assert "nan" not in svg and "inf" not in svg and "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    return ElementTree.fromstring(svg)


def texts(svg: str) -> list[str]:
    return [element.text for element in parsed(svg).iter(f"{SVG}text")]


def marks(svg: str, tag: str, kind: str) -> list[dict[str, float]]:
    """The numbers of the elements that have a class."""
    found = [element for element in parsed(svg).iter(SVG + tag) if kind in element.get("class", "").split()]
    return [{name: float(value) for name, value in element.items() if re.fullmatch(r"-?[\d.]+", value)} for element in found]


def content(arms: dict[str, tuple[float, float]], **more) -> dict:
    """Arms whose mean identity and context over two subjects are given, ± 0.01."""
    rows = [
        {"subject": str(i), "arm": arm, "identity": a + i, "context": b - i, "identity_context": a * b + i, "clip_t": None}
        for arm, (a, b) in arms.items()
        for i in (-0.01, 0.01)
    ]
    rows.append({"subject": "-0.01", "arm": "photos", "identity": 0.9, "context": None, "identity_context": None, "clip_t": None})
    scores = ("identity", "context", "identity_context", "clip_t")
    found = comparison.compare(rows, scores, reference="supervisor", main_score="identity_context", primary=(("proxy", "direct_lora"),))
    return found | {"curve": [{"arm": "proxy", "proxies": 1000}]} | more


ARMS = {"supervisor": (0.8, 0.6), "proxy": (0.8, 0.7), "direct_lora": (0.5, 0.7)}


def test_a_scale_maps_its_ends_and_its_middle():
    linear, log, one = Scale(0, 10, 100, 200), Scale(10, 1000, 0, 100, log=True), Scale(5, 5, 0, 10)
    assert (linear(0), linear(5), linear(10)) == (100, 150, 200)
    assert log(100) == pytest.approx(50) and one(5) == 5
    assert figures.around([0.0, 1.0], 0, 1).low < 0 and figures.around([0.3, 0.3], 0, 1).low < 0.3


def test_only_figures_that_have_something_to_show_are_drawn():
    assert set(figures.draw(content(ARMS))) == {"identity_context", "identity_by_context"}
    curve = [{"arm": "proxy", "proxies": 1000}, {"arm": "direct_lora", "proxies": 10}]
    assert "few_proxies" in figures.draw(content(ARMS, curve=curve))
    row = {"subject": "a", "arm": "x", "identity": 0.5, "context": None, "identity_context": None}
    assert figures.draw(comparison.compare([row], ("identity", "context", "identity_context"), reference="x") | {"curve": []}) == {}


def test_intervals_are_ranked_and_coloured():
    svg = figures.draw(content(ARMS))["identity_context"]
    names = [text for text in texts(svg) if text in ("proxy", "supervisor", "direct lora", "photos")]
    assert names == ["proxy", "supervisor", "direct lora"]  # the photos have no context
    first, second, other = (marks(svg, "circle", kind) for kind in ("first", "second", "other"))
    assert [len(found) for found in (first, second, other)] == [1, 1, 1]
    assert first[0]["cx"] > second[0]["cx"] > other[0]["cx"] and first[0]["cy"] < second[0]["cy"] < other[0]["cy"]
    (whisker,) = marks(svg, "line", "first")
    assert whisker["x1"] < first[0]["cx"] < whisker["x2"]
    assert first[0]["cx"] - whisker["x1"] == pytest.approx(whisker["x2"] - first[0]["cx"], abs=0.11)


def test_names_in_the_scatter_do_not_cover_each_other():
    points = [(f"an arm {i}", "other", Mean(0.5 + 0.001 * i, 0.1), Mean(0.5, 0.1)) for i in range(5)]
    points.append(("at the edge", "first", Mean(0.9, 0.0), Mean(0.5, 0.1)))
    svg = figures.scatter(points, title="t", x_label="x", y_label="y")
    names = [element for element in parsed(svg).iter(f"{SVG}text") if element.text.startswith(("an arm", "at the"))]
    boxes = [(float(n.get("x")), float(n.get("y")), float(n.get("x")) + figures.LETTER * len(n.text)) for n in names]
    assert len(boxes) == 6 and all(left > 0 and right < figures.WIDTH for left, _, right in boxes)
    for i, (left, y, right) in enumerate(boxes):
        for other_left, other_y, other_right in boxes[:i]:
            assert abs(y - other_y) >= 13 or right < other_left or left > other_right


def test_the_longest_title_fits_its_figure():
    assert 20 + len(figures.RATES_TITLE) * figures.LETTER * 14 / 12 < figures.WIDTH  # letters of the axes have 12, of titles 14 points


def test_the_curve_is_logarithmic_with_its_band_and_level():
    points = [(10, Mean(0.4, 0.1)), (100, Mean(0.5, 0.1)), (1000, Mean(0.6, 0.0))]
    svg = figures.curve(points, [("supervisor", "second", 0.5)], title="t", x_label="proxies", y_label="y")
    dots = marks(svg, "circle", "first")
    assert dots[1]["cx"] - dots[0]["cx"] == pytest.approx(dots[2]["cx"] - dots[1]["cx"], abs=0.11)
    (level,) = marks(svg, "line", "second")
    assert level["y1"] == level["y2"] == dots[1]["cy"]
    (band,) = [element for element in parsed(svg).iter(f"{SVG}polygon")]
    corners = [tuple(map(float, pair.split(","))) for pair in band.get("points").split()]
    assert len(corners) == 6 and corners[2] == corners[3]  # no width where there is no interval
    assert {"10", "100", "1000", "supervisor"} <= set(texts(svg))


def accounts() -> dict:
    results = [told(str(i), 4 * i, {"proxy": 2 * i, "control": 4 * i + 2}, misread=5 * (i == 1)) for i in range(1, 5)]
    return comparison.accounts(results, ("proxy", "control"), most_misread=0.2)


def test_the_account_is_drawn():
    drawn = figures.draw(content(ARMS, account=accounts()))
    rates, errors = drawn["error_rates"], drawn["errors"]
    # Two attributes of four subjects; what the probe misreads is hollow.
    assert len(marks(rates, "circle", "first")) == len(marks(rates, "circle", "third")) == 8
    assert len(marks(rates, "circle", "hollow")) == 2
    assert any(text.startswith("slope 0.50 [") for text in texts(rates))
    # A majority filter's step at 1/2, in each of two panels from 0 to 1.06; both its levels are grid lines.
    steps = [element for element in parsed(rates).iter(f"{SVG}polyline") if element.get("class") == "majority"]
    corners = [[tuple(map(float, pair.split(","))) for pair in step.get("points").split()] for step in steps]
    assert len(corners) == 2
    for (left, bottom), (half, low), (same, high), (right, top) in corners:
        assert half == same and half - left == pytest.approx((right - left) / 2, abs=0.11)
        assert bottom == low and high == top and low - high == pytest.approx(right - left, abs=0.11)
    assert texts(errors).count("systematic") == 1 and {"proxies", "proxy", "control", "attributes", "tokens around it"} <= set(texts(errors))
    widths = [bar["width"] for bar in marks(errors, "rect", "second")]
    assert len(widths) == 6 and min(widths) >= 0


def test_a_fitted_line_stays_inside_its_square():
    x, y = Scale(0, 1, 0, 100), Scale(0, 1, 100, 0)
    assert figures._inside(0.5, 0.1, 1.0, x, y) == [(0, pytest.approx(90)), (100, pytest.approx(40))]
    assert figures._inside(2.0, 0.0, 1.0, x, y) == [(0, 100), (50, 0)]
    assert figures._inside(0.0, 2.0, 1.0, x, y) == []


def test_light_and_dark_have_the_same_colours_to_give_and_text_is_escaped():
    svg = figures.intervals([("a < b & c", "first", Mean(0.5, 0.0))], title='"t" & <u>', label="x")
    assert "a < b & c" in texts(svg) and '"t" & <u>' in texts(svg)
    assert figures.LIGHT.keys() == figures.DARK.keys() and "prefers-color-scheme:dark" in svg
    assert all(colours["card"] in svg and colours["ink"] in svg for colours in (figures.LIGHT, figures.DARK))
