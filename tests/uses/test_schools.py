import json
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import problems
from problems import Case
from whence.adapters import make_problem
from whence.calculus.regions import Attribution
from whence.core.problem import Problem
from whence.errors import BadArgument, TrainMode, UnknownName, Unsupported
from whence.sections import Bars, Gallery, Table
from whence.uses.schools import Schools, other_schools

needs_captum = pytest.mark.skipif(
    find_spec("captum") is None, reason="needs captum: pip install 'whence[schools]'"
)
SINGLE = 1e-5
"""captum keeps the weights of its integral, and its linear models, in float32."""


def ask(case: Case, **options: object) -> Schools:
    return other_schools(case.problem, case.queries, **options)


# ------------------------------------------------------------------ most activating examples


def outputs_of(problem: Problem) -> Tensor:
    rows = [problem.batch(torch.tensor([i])) for i in range(len(problem))]
    with torch.no_grad():
        return torch.cat([problem.outputs(problem.parameters, row.inputs) for row in rows])


def answer_of(case: Case, position: int) -> Tensor:
    asked = case.problem.queries(case.queries)
    with torch.no_grad():
        return case.problem.outputs(case.problem.parameters, asked.inputs)[position]


@pytest.mark.parametrize("case", [problems.multinomial, problems.conv, problems.tokens])
@pytest.mark.parametrize("position", [0, 3])
def test_of_classes_the_logit_of_the_answered_class_is_what_is_most_active(case, position):
    answer = int(answer_of(case(), position).argmax())
    found = ask(case(), position=position, regions=None).activations
    expected = outputs_of(case().problem)[:, answer].numpy()
    assert_allclose(found.values, expected, rtol=1e-12)
    assert found.name == f"logit of {answer}"
    best = sorted(range(len(expected)), key=lambda i: -expected[i])[:4]
    assert [name for name, _ in found.top(4)] == best
    assert_allclose([value for _, value in found.top(4)], expected[best], rtol=1e-12)


@pytest.mark.parametrize("case", [problems.logistic, problems.smooth_hinge])
def test_of_one_logit_the_side_of_the_answer_is_what_is_most_active(case):
    for position in range(5):
        sign = 1 if answer_of(case(), position) > 0 else -1
        found = ask(case(), position=position, regions=None).activations
        assert_allclose(found.values, sign * outputs_of(case().problem)[:, 0], rtol=1e-12)


def test_of_a_regression_the_highest_predictions_are_most_active():
    found = ask(problems.ridge(), regions=None).activations
    assert_allclose(found.values, outputs_of(problems.ridge().problem)[:, 0], rtol=1e-12)
    assert found.name == "prediction"


def test_a_sequence_is_active_where_it_says_what_was_answered():
    case = problems.tied()
    answers = answer_of(case, 0).argmax(0)
    found = ask(case, regions=None).activations
    expected = outputs_of(case.problem)[:, answers, torch.arange(len(answers))].sum(1)
    assert_allclose(found.values, expected, rtol=1e-12)


def test_under_an_unknown_loss_the_measurement_itself_says_what_is_active():
    case = problems.ridge()

    def cubic(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).abs() ** 3

    problem = make_problem(case.problem.model, _data(case.problem), loss=cubic)
    found = other_schools(problem, case.queries, regions=None).activations
    expected = -cubic(outputs_of(case.problem), case.queries[1][0])
    assert_allclose(found.values, expected, rtol=1e-12)
    assert found.name == "minus the loss with the target of this query"


def _data(problem: Problem) -> tuple[Tensor, Tensor]:
    return problem.data.take(torch.arange(len(problem)))


def test_equally_active_examples_stand_in_the_order_of_the_data():
    x = torch.tensor([[1.0], [2.0], [2.0], [0.0], [2.0]])
    problem = make_problem(
        nn.Linear(1, 2), (x, torch.tensor([0, 1, 0, 1, 0])), loss="cross_entropy"
    )
    found = other_schools(problem, x[:1], regions=None).activations
    tied = [name for name, value in found.top(5) if value == found.values[1]]
    assert tied == [1, 2, 4]


# ------------------------------------------------------------------ what looks at the input


@needs_captum
def test_a_linear_model_is_shared_out_by_coefficient_times_input():
    case = problems.multinomial()
    weight = case.problem.model.weight.detach()[case.queries[1][2]]
    mean = _data(case.problem)[0].mean(0)
    for baseline, start in (("zero", 0), ("mean", mean), ("auto", mean), (mean + 1, mean + 1)):
        regions = ask(case, position=2, measurement="logit", baseline=baseline).regions
        expected = (weight * (case.queries[0][2] - start)).numpy()
        assert_allclose(regions.attribution.values, expected, rtol=SINGLE)
        assert_allclose(regions.local_model.coefficients, expected, atol=SINGLE)
        assert_allclose(regions.local_model.r_squared, 1, atol=1e-9)


@needs_captum
def test_the_margin_is_what_is_explained_unless_something_else_is_asked_for():
    case = problems.conv()
    for options, name in (({}, "margin of"), ({"measurement": "loss"}, "loss")):
        found = ask(case, **options)
        function = case.problem.measurement(options.get("measurement")).function
        with torch.no_grad():
            outputs = case.problem.model(torch.cat([case.queries[0][:1], torch.zeros(1, 1, 6, 6)]))
            at_query, at_start = function(outputs, case.queries[1][[0, 0]]).tolist()
        assert found.asked.measurement.startswith(name)
        assert_allclose(found.asked.value, at_query, rtol=1e-12)
        assert_allclose(found.regions.attribution.at_baseline, at_start, rtol=1e-12)
        total = found.regions.attribution.values.sum()
        assert_allclose(total, at_query - at_start, rtol=SINGLE)


@needs_captum
def test_the_baseline_is_zero_for_pictures_and_mostly_empty_rows_and_else_the_mean():
    assert ask(problems.conv()).regions.baseline == "an input of zeros"
    assert ask(problems.multinomial()).regions.baseline == "the mean training input"
    counts = (torch.rand(30, 6, generator=torch.Generator().manual_seed(0)) > 0.7).double()
    data = counts, torch.arange(30) % 2
    problem = make_problem(nn.Linear(6, 2).double(), data, loss="cross_entropy")
    assert other_schools(problem, data).regions.baseline == "an input of zeros"
    dense = counts + 1, data[1]
    found = other_schools(make_problem(problem.model, dense, loss="cross_entropy"), dense)
    assert_allclose(found.regions.start, dense[0].mean(0), rtol=1e-12)


@needs_captum
def test_a_picture_gets_heat_maps_and_its_last_convolution():
    section = ask(problems.conv(), regions=3).section()
    maps, examples, table = section.blocks
    words = [caption.split(";")[0] for _, caption in maps.pictures]
    assert words == [
        "the query",
        "integrated gradients",
        "Grad-CAM at the layer features.2",
        "local linear model, by parts",
    ]
    assert {(d["width"], d["height"]) for d, _ in maps.pictures} == {(6, 6)}
    assert isinstance(examples, Gallery)
    assert isinstance(table, Table)
    regions = ask(problems.conv(), regions=3).regions
    assert len(regions.local_model.coefficients) == 9
    assert [field.shape for _, field in regions.fields()] == [(6, 6)] * 3


def in_words(number: float) -> str:
    return f"{number:.3g}".replace("-", "\N{MINUS SIGN}")


@needs_captum
def test_a_row_gets_bars_with_names_and_values_the_strongest_first():
    case = problems.breast_cancer()
    names = [f"measure {i}" for i in range(30)]
    named = replace(case.problem, display={"kind": "row", "feature_names": names})
    found = other_schools(named, case.queries, measurement="logit")
    bars = found.section().blocks[0]
    assert isinstance(bars, Bars)
    values = found.regions.attribution.values
    order = np.argsort(-abs(values))[:12]
    assert_allclose([value for _, value in bars.values], values[order])
    first = f"measure {order[0]} = {case.queries[0][0, order[0]]:.3g}".replace(
        "-", "\N{MINUS SIGN}"
    )
    assert bars.values[0][0] == first
    others = f"{values.sum() - values[order].sum():.3g}".replace("-", "\N{MINUS SIGN}")
    assert f"The others together: {others}." in bars.caption


@needs_captum
def test_a_sequence_of_vectors_gets_a_bar_for_each_position():
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, steps: Tensor) -> Tensor:
            return self.head(torch.tanh(steps).mean(1))

    data = torch.randn(12, 5, 3), torch.arange(12) % 2
    problem = make_problem(Pooled(), data, loss="cross_entropy", display="none")
    found = other_schools(problem, data, position=4)
    bars = found.section().blocks[0]
    assert sorted(name for name, _ in bars.values) == [f"position {i}" for i in range(5)]
    expected = found.regions.attribution.values.sum(1)
    assert_allclose(sorted(value for _, value in bars.values), np.sort(expected), rtol=1e-12)
    assert len(found.regions.local_model.coefficients) == 5


@needs_captum
def test_the_parameters_of_the_problem_are_used_and_not_those_of_the_live_module():
    case = problems.conv()
    moved = case.problem.parameters * 1.5 + 0.05
    twin = problems._seeded(problems.ConvNet)
    nn.utils.vector_to_parameters(moved, twin.parameters())
    expected = other_schools(
        make_problem(twin, _data(case.problem), loss="cross_entropy"), case.queries
    )
    found = other_schools(case.problem.at(moved), case.queries)
    assert json.dumps(found.to_json()) == json.dumps(expected.to_json())
    assert found.asked.value != ask(case).asked.value


@needs_captum
def test_the_live_module_is_left_as_it_was():
    case = problems.conv()
    model = case.problem.model
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    case.queries[0].grad = None
    other_schools(case.problem.at(case.problem.parameters + 1), case.queries)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in kept.items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not case.queries[0].requires_grad


@needs_captum
def test_the_seed_decides_what_lime_tries_and_nothing_else():
    once, again, other = (ask(problems.conv(), seed=seed).to_json() for seed in (3, 3, 4))
    assert once == again
    local = [found["regions"].pop("local_model") for found in (once, other)]
    assert local[0]["coefficients"] != local[1]["coefficients"]
    assert once == other


# ------------------------------------------------------------------ kinds of problems


@needs_captum
def test_a_linear_model_of_scikit_learn_is_explained_in_its_columns():
    x, y = _data(problems.ridge().problem)
    model = Ridge(alpha=0.5).fit(x, y)
    found = other_schools(make_problem(model, (x, y)), x[:3], position=1)
    expected = model.coef_ * (x[1] - x.mean(0)).numpy()
    assert_allclose(found.regions.attribution.values, expected, rtol=SINGLE)
    assert found.asked.label is None
    told = f"The prediction is {in_words(found.asked.value)} units of the target. That is"
    assert found.section().sentence.startswith(told)


@needs_captum
def test_a_pipeline_is_explained_on_the_features_of_its_last_step_and_says_so():
    x, y = (part.numpy() for part in _data(problems.logistic().problem))
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(3 * x + 7, y)
    problem = make_problem(model, (3 * x + 7, y))
    found = other_schools(problem, (3 * x[:3] + 7, y[:3]), measurement="logit", baseline="zero")
    scaled = model[0].transform(3 * x[:1] + 7)[0]
    assert_allclose(found.regions.attribution.values, model[1].coef_[0] * scaled, rtol=SINGLE)
    assert found.regions.is_prepared
    assert "as they are prepared for the model" in found.section().blocks[0].caption
    assert "features that fixed steps make" in found.section().warnings[0]


@needs_captum
def test_words_that_a_text_does_not_have_play_no_part():
    texts = ["free money now", "win free prizes", "lunch at noon", "meeting at noon"] * 5
    labels = ["spam", "spam", "ham", "ham"] * 5
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, labels)
    problem = make_problem(model, (texts, labels))
    found = other_schools(problem, ["free lunch at noon"])
    present = model[0].transform(["free lunch at noon"]).toarray()[0] != 0
    assert found.regions.baseline == "an input of zeros"
    assert len(found.regions.local_model.coefficients) == 4
    assert (found.regions.attribution.values[~present] == 0).all()
    assert found.asked.display["text"] == "free lunch at noon"
    assert found.asked.answer == "ham"


class Backbone(nn.Module):
    """Eight features of a picture of 6 x 6."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Tanh())

    def forward(self, image: Tensor) -> Tensor:
        return self.body(image).mean((2, 3))


def behind_a_backbone(head: nn.Module, raw: Tensor, features: object) -> Problem:
    y = torch.arange(len(raw)) % 2
    return make_problem(head, (raw, y), loss="cross_entropy", features=features)


@needs_captum
def test_behind_a_feature_extractor_the_raw_picture_is_explained_end_to_end():
    backbone, head = (problems._seeded(build) for build in (Backbone, lambda: nn.Linear(8, 2)))
    raw = torch.randn(10, 1, 6, 6, dtype=torch.float64)
    queries = raw[:2], torch.tensor([1, 0])
    found = other_schools(behind_a_backbone(head, raw, backbone), queries, position=1)
    whole = make_problem(
        nn.Sequential(backbone, head), (raw, torch.arange(10) % 2), loss="cross_entropy"
    )
    expected = other_schools(whole, queries, position=1)
    ours, theirs = found.regions, expected.regions
    assert_allclose(ours.attribution.values, theirs.attribution.values, rtol=1e-9, atol=1e-12)
    assert_allclose(ours.grad_cam.values, theirs.grad_cam.values, rtol=1e-9, atol=1e-12)
    assert_allclose(ours.local_model.coefficients, theirs.local_model.coefficients, atol=SINGLE)
    assert (ours.grad_cam.layer, theirs.grad_cam.layer) == ("body.2", "0.body.2")
    assert_allclose(found.activations.values, expected.activations.values, rtol=1e-9)
    assert not ours.is_prepared
    assert ours.places.grid == (6, 6)
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert not any(module._forward_hooks for module in backbone.modules())


@needs_captum
def test_behind_an_extractor_that_torch_cannot_follow_its_features_are_explained():
    backbone, head = (problems._seeded(build) for build in (Backbone, lambda: nn.Linear(8, 2)))
    raw = torch.randn(10, 1, 6, 6, dtype=torch.float64)

    def by_numpy(images: Tensor) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(backbone(images).numpy())

    found = other_schools(behind_a_backbone(head, raw, by_numpy), (raw, torch.arange(10) % 2))
    assert found.regions.is_prepared
    assert found.regions.grad_cam is None
    assert found.regions.attribution.values.shape == (8,)


# ------------------------------------------------------------------ words


def test_the_sentence_says_what_was_answered_measured_and_that_effects_are_another_question():
    case = problems.multinomial()
    problem = replace(case.problem, label_names=["ash", "birch", "cedar"])
    found = other_schools(problem, case.queries, regions=None)
    answer = ["ash", "birch", "cedar"][int(answer_of(case, 0).argmax())]
    sentence = found.section().sentence
    assert sentence.startswith(f"The model says {answer}")
    assert f"margin of {['ash', 'birch', 'cedar'][case.queries[1][0]]} is" in sentence
    assert "effects do" in sentence
    assert found.to_json()["regions"] is None


@needs_captum
def test_regions_that_fit_badly_are_warned_about():
    regions = ask(problems.mlp_untrained()).regions
    assert regions.warnings() == ()
    broken = Attribution(regions.attribution.values, 0.0, 7.0, 1024)
    poor = replace(regions.local_model, r_squared=0.2)
    texts = replace(regions, attribution=broken, local_model=poor).warnings()
    assert "after 1024 steps" in texts[0]
    assert "explains 20 %" in texts[1]
    assert "No local model" in replace(regions, local_model=None).warnings()[0]


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("position", [-1, 6])
def test_a_query_that_does_not_exist_is_refused(position):
    with pytest.raises(BadArgument, match=f"Query {position} was asked for; there are 6") as error:
        ask(problems.multinomial(), position=position)
    assert "0 to 5" in error.value.remedy


@pytest.mark.parametrize("name", ["captum", "captum.attr"])
def test_without_captum_the_extra_is_named_and_what_goes_without_it(name, monkeypatch):
    for module in [m for m in sys.modules if m == "captum" or m.startswith("captum.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Unsupported, match="captum cannot be imported") as error:
        ask(problems.multinomial())
    assert "pip install 'whence[schools]'" in error.value.remedy
    assert "regions=None" in error.value.remedy
    assert ask(problems.multinomial(), regions=None).regions is None


def test_integers_and_several_inputs_are_refused_with_what_can_be_asked_instead():
    with pytest.raises(Unsupported, match="int64, such as tokens") as error:
        ask(problems.tied())
    assert "regions=None" in error.value.remedy
    with pytest.raises(Unsupported, match="An example has 2 input tensors"):
        ask(problems.tokens())


@needs_captum
def test_options_out_of_range_are_refused():
    case = problems.multinomial()
    with pytest.raises(BadArgument, match="regions=0"):
        ask(case, regions=0)
    with pytest.raises(UnknownName, match="'grey' is not a baseline"):
        ask(case, baseline="grey")
    with pytest.raises(BadArgument, match=r"baseline has the shape \(3,\)"):
        ask(case, baseline=np.zeros(3))


def test_a_model_in_training_mode_is_refused():
    case = problems.conv()
    model = problems._seeded(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3)))
    problem = make_problem(model, _data(case.problem), loss="cross_entropy")
    model.train()
    with pytest.raises(TrainMode):
        other_schools(problem, case.queries, regions=None)
