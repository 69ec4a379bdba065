from xml.etree import ElementTree as ET

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from upslope.report.chart import HEIGHT, WIDTH, Chart, Line, color_class, draw, frame_of, hover_data, svg_markup

steps = np.arange(5.0)


def points(path: str) -> np.ndarray:
    """Corners [n, 2] of a path of straight lines."""
    return np.array([[float(n) for n in pair.split()] for pair in path.strip("MZ").split("L")])


def test_a_line_passes_through_its_points():
    chart = Chart("reward", [Line("reward", steps, steps / 4)], low=0, high=1)
    frame = frame_of(chart)
    (path,) = (p for p in draw(chart).iter("path") if p.get("class", "").startswith("line"))
    drawn = points(path.get("d"))
    np.testing.assert_allclose(drawn[:, 0], np.linspace(frame.x.start, frame.x.end, 5), atol=0.06)
    np.testing.assert_allclose(drawn[:, 1], np.linspace(frame.y.start, frame.y.end, 5), atol=0.06)


def test_the_band_encloses_the_line_and_one_point_has_a_bar():
    line = Line("pass@1", steps, steps, steps - 1, steps + 1)
    svg = draw(Chart("", [line]))
    band = points(next(p for p in svg.iter("path") if "band" in p.get("class", "")).get("d"))
    drawn = points(next(p for p in svg.iter("path") if "line" in p.get("class", "")).get("d"))
    assert (band[:5, 1] < drawn[:, 1]).all()  # smaller is higher
    assert (band[5:][::-1, 1] > drawn[:, 1]).all()
    single = draw(Chart("", [Line("pass@1", steps[:1], steps[:1], steps[:1] - 1, steps[:1] + 1)]))
    assert any("bar" in p.get("class", "") for p in single.iter("path"))
    assert len(list(single.iter("circle"))) == 1


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.floats(-1e300, 1e300)), min_size=1, max_size=30, unique_by=lambda p: p[0]
    ),
    st.booleans(),
)
def test_everything_is_drawn_inside_the_frame(pairs, log):
    x, y = (np.array(column, dtype=float) for column in zip(*sorted(pairs), strict=True))
    svg = draw(Chart("any", [Line("any", x, y, marks=True)], log=log))
    for circle in svg.iter("circle"):
        assert 0 <= float(circle.get("cx")) <= WIDTH
        assert 0 <= float(circle.get("cy")) <= HEIGHT
    for label in svg.iter("text"):
        assert 0 <= float(label.get("x")) <= WIDTH


@given(st.text(), st.text())
def test_names_cannot_leave_their_place(title, name):
    chart = Chart(title, [Line(name, steps, steps)])
    plain = draw(Chart("title", [Line("name", steps, steps)]))
    again = ET.fromstring(svg_markup(draw(chart)))
    assert [(e.tag, sorted(e.attrib)) for e in again.iter()] == [(e.tag, sorted(e.attrib)) for e in plain.iter()]


def test_hover_data_has_the_values_and_where_they_are_drawn():
    chart = Chart("", [Line("pass@1", steps, steps / 4, steps / 8, steps / 2)], steps=(0, 8))
    data = hover_data(chart)
    assert data["x"][:2] == [0, 8]
    (line,) = data["lines"]
    assert (line["x"], line["y"]) == (list(steps), list(steps / 4))
    assert (line["low"], line["high"]) == (list(steps / 8), list(steps / 2))


def test_long_series_stay_small_and_keep_their_spikes():
    x = np.arange(100_000.0)
    y = np.sin(x / 5000)
    y[77_777] = 9.0
    chart = Chart("", [Line("a", x, y)])
    assert len(svg_markup(draw(chart))) < 10_000
    assert max(hover_data(chart)["lines"][0]["y"]) == 9.0


def test_more_lines_than_colours_differ_by_their_dashes():
    assert len({color_class(index) for index in range(32)}) == 32
