import re

import pytest

from whence.report.charts import MOST_POINTS, distribution, scatter

MARGIN = {"name": "margin", "unit": "logits", "higher_is_better": True, "is_calibrated": True}
ARBITRARY = MARGIN | {"unit": "arbitrary", "is_calibrated": False}


def verification(queries=2, examples=5):
    points = [
        {"query": query, "example": i, "predicted": 0.1 * i - query, "actual": 0.11 * i - query}
        for query in range(queries)
        for i in range(examples)
    ]
    return {
        "kind": "leave-one-out",
        "points": points,
        "pearson": 0.98,
        "spearman": None,
        "slope": 1.1,
    }


def marks(svg, role):
    return re.findall(rf'<path aria-label="([^"]*)" [^>]*aria-roledescription="{role}"', svg)


@pytest.mark.parametrize(("queries", "examples"), [(1, 1), (1, 40), (3, 7), (9, 5)])
def test_a_scatter_has_one_named_mark_a_point(queries, examples):
    svg = scatter(verification(queries, examples), MARGIN)
    named = marks(svg, "point")
    assert len(named) == queries * examples
    assert "query 0 without example 0: predicted 0, actual 0 logits" in named


def test_very_many_points_are_thinned_and_the_chart_says_so():
    svg = scatter(verification(20, 100), MARGIN)
    assert MOST_POINTS / 2 <= len(marks(svg, "point")) <= MOST_POINTS
    assert "1,000 of 2,000 points" in svg


def test_points_that_are_not_numbers_are_left_out_and_counted():
    broken = verification(1, 5)
    broken["points"][0]["actual"] = None
    svg = scatter(broken, MARGIN)
    assert len(marks(svg, "point")) == 4
    assert "4 of 5 points" in svg


def test_few_queries_have_a_legend_and_many_have_none():
    assert ">query 1<" in scatter(verification(3), MARGIN)
    assert "legend" not in scatter(verification(30), MARGIN)
    assert "legend" not in scatter(verification(1), MARGIN)


def test_only_calibrated_scores_have_a_line_of_agreement():
    assert "stroke-dasharray" in scatter(verification(), MARGIN)
    assert "stroke-dasharray" not in scatter(verification(), ARBITRARY)
    assert "predicted effect (arbitrary units)" in scatter(verification(), ARBITRARY)


def test_the_line_of_agreement_is_the_diagonal_of_the_plot():
    assert 'd="M0,330L330,0"' in scatter(verification(), MARGIN)


def test_a_scatter_tells_its_numbers_in_words():
    svg = scatter(verification(), MARGIN)
    head = svg[: svg.index(">")]
    assert 'role="img"' in head
    assert "10 points, Pearson correlation 0.980, slope 1.10." in head
    assert "Spearman" not in head


def query(counts, **changes):
    reach = {"low": -1.0, "high": 1.0, "counts": counts}
    return {"id": 3, "half_of_influence": 7, "distribution": reach} | changes


def test_a_histogram_has_one_named_bar_a_filled_bin():
    svg = distribution(query([1, 0, 400, 3, 2]), MARGIN)
    assert marks(svg, "bar") == [
        "1 example near −0.800 logits",
        "400 examples near 0 logits",
        "3 examples near 0.400 logits",
        "2 examples near 0.800 logits",
    ]
    assert "406 training examples on query 3" in svg[: svg.index(">")]


def test_the_sides_of_a_histogram_follow_the_measurement():
    loss = MARGIN | {"name": "loss", "higher_is_better": False}
    falling = query([5, 0, 0])  # the effects of these five are negative
    assert "--proponent" in distribution(falling, MARGIN)
    assert "--opponent" in distribution(falling, loss)


def test_bars_stand_on_the_axis():
    svg = distribution(query([1, 10, 100]), MARGIN)
    bars = re.findall(r'roledescription="bar" d="M[\d.]+,([\d.]+)h[\d.]+v([\d.]+)', svg)
    assert len(bars) == 3
    for top, height in bars:
        assert float(top) + float(height) == pytest.approx(80, abs=0.02)  # rounded coordinates


def test_charts_scale_with_the_page_and_take_its_colours():
    for svg in (scatter(verification(), MARGIN), distribution(query([1, 2, 1]), MARGIN)):
        head = svg[: svg.index(">")]
        assert "viewBox=" in head
        assert "width=" not in head
        assert "http" not in svg
        assert not re.search(r'(fill|stroke)="(#|rgb|black|white)', svg)


def test_hostile_names_stay_text():
    hostile = '<script>"&alert(1)</script>'
    points = verification(2, 2)
    for point in points["points"]:
        point["query"] = point["example"] = hostile + str(point["query"])
    assert "<script" not in scatter(points, MARGIN | {"unit": hostile})
    unit = MARGIN | {"unit": hostile, "name": hostile}
    assert "<script" not in distribution(query([1, 2, 1], id=hostile), unit)
