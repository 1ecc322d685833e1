"""Features of a frozen network: made once, checked, and differentiated with respect to the raw."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import whence
from whence.core.batches import make_data
from whence.core.extracted import ExtractedData, Extraction, Extractor
from whence.errors import (
    BadData,
    NonFinite,
    NotDeterministic,
    NotPerExample,
    TrainMode,
    Unsupported,
)

X = torch.rand(40, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = (X.mean((1, 2, 3)) > 0.5).long()
WORDS = np.array(["dark", "bright"])


class Counting(nn.Module):
    """A convolution that counts the images it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten())
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return self.layers(images)


class Dicts(Dataset):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"images": X[row], "label": Y[row]}


@pytest.fixture
def network() -> Counting:
    return Counting().double().eval()


def features(network: Counting, images: Tensor = X) -> Tensor:
    with torch.no_grad():
        return network.layers(images)


FORMS = {
    "tensors": (X, Y),
    "list": [X, Y],
    "arrays": (X.numpy(), Y.numpy()),
    "dataset": TensorDataset(X, Y),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True),
    "dict": {"images": X, "label": Y},
    "dataset of dicts": Dicts(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_becomes_the_same_features(form, network) -> None:
    data = Extraction(Extractor(network), make_data)
    if "dict" in form:
        data = Extraction(Extractor(lambda images: network(images)), make_data)
    made = data(FORMS[form], ids=np.arange(100, 140))
    rows = torch.tensor([3, 30, 7])
    inputs, targets = made.take(rows)
    torch.testing.assert_close(inputs, features(network)[rows])
    assert targets.tolist() == Y[rows].tolist()
    assert made.ids.tolist() == list(range(100, 140))
    raw = made.raw(rows)
    assert torch.equal(raw["images"] if "dict" in form else raw, X[rows])


def test_features_are_made_once(network) -> None:
    head = nn.Linear(18, 2).double().eval()
    problem = whence.make_problem(
        head, (X, Y), loss="cross_entropy", weight_decay=0.1, features=network
    )
    after_making = network.seen
    assert after_making == len(X) + 2  # and the first alone, twice
    whence.explain(problem, problem.queries((X[:3], Y[:3])))
    assert network.seen == after_making + 3 + 2


def test_a_head_on_features_is_the_problem_on_the_features(network) -> None:
    head = nn.Linear(18, 2).double().eval()
    options: Any = {"loss": "cross_entropy", "weight_decay": 0.1}
    on_images = whence.make_problem(head, (X, Y), features=network, **options)
    on_features = whence.make_problem(head, (features(network), Y), **options)
    effects = whence.explain(on_images, (X[:4], Y[:4])).values
    expected = whence.explain(on_features, (features(network)[:4], Y[:4])).values
    np.testing.assert_allclose(effects, expected, rtol=1e-12)


def test_a_pipeline_of_scikit_learn_can_be_the_head(network) -> None:
    made, labels = features(network).numpy(), WORDS[Y.numpy()]
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(made, labels)
    on_images = whence.make_problem(model, (X.numpy(), labels), features=network)
    on_features = whence.make_problem(model, (made, labels))
    effects = whence.explain(on_images, (X[:4], labels[:4])).values
    expected = whence.explain(on_features, (made[:4], labels[:4])).values
    np.testing.assert_allclose(effects, expected, rtol=1e-10)
    assert on_images.label_names == ("bright", "dark")


def test_people_are_shown_the_raw_images(network) -> None:
    head = nn.Linear(18, 2).double().eval()
    problem = whence.make_problem(head, (X, Y), loss="cross_entropy", features=network)
    assert problem.show(2)["kind"] == "image"
    assert problem.queries((X[:2], Y[:2])).displays[0] == problem.show(0)
    assert torch.equal(problem.data.example(5), X[5])


def test_texts_go_to_a_callable_as_they_are() -> None:
    texts = ["a b", "b c", "a c d", "d"] * 5
    labels = np.arange(20) % 2
    vectorizer = CountVectorizer(token_pattern=r"\w").fit(texts)
    model = LogisticRegression().fit(vectorizer.transform(texts), labels)
    problem = whence.make_problem(model, (texts, labels), features=vectorizer.transform)
    assert problem.show(2) == {"kind": "text", "text": "a c d"}
    inputs, _ = problem.data.take(torch.tensor([2]))
    assert inputs.tolist() == vectorizer.transform(texts[2:3]).toarray().tolist()
    raw = problem.data.raw(torch.tensor([0]))
    with pytest.raises(Unsupported, match="integers, texts or categories"):
        problem.data.pull_back(raw, torch.ones(1, 1, 4))


def test_rows_of_a_frame_go_to_a_callable_as_a_frame() -> None:
    frame = pd.DataFrame({"word": list("abcd") * 5, "size": range(20)})

    def extractor(rows: pd.DataFrame) -> np.ndarray:
        return np.stack([rows["word"].map(ord) - 97, rows["size"]], axis=1)

    data = Extraction(Extractor(extractor), make_data)((frame, None))
    assert data.take(torch.tensor([6]))[0].tolist() == [[2.0, 6.0]]
    assert data.example(6) == {"word": "c", "size": 6}


# ---------------------------------------------------------------- derivatives


@pytest.mark.parametrize("head", ["torch", "pipeline"])
def test_slopes_are_carried_back_through_the_network(network, head) -> None:
    read = make_data
    if head == "pipeline":
        labels = Y.numpy()
        model = make_pipeline(StandardScaler(), LogisticRegression())
        model.fit(features(network).numpy(), labels)
        data = whence.make_problem(model, (X, labels), features=network).data
    else:
        data = Extraction(Extractor(network), read)((X, Y))
    rows = torch.tensor([4, 9])
    raw = data.raw(rows)
    slopes = torch.randn(3, 2, 18, dtype=torch.float64)
    found = data.pull_back(raw, slopes)
    assert found.shape == (3, *raw.shape)

    move = torch.randn(raw.shape, dtype=torch.float64)
    h = 1e-5
    change = (data.prepare(raw + h * move) - data.prepare(raw - h * move)) / (2 * h)
    expected = (slopes * change).sum(2)
    actual = (found * move).flatten(2).sum(2)
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9)


def test_several_inputs_each_have_their_derivative() -> None:
    left, right = torch.rand(6, 2, dtype=torch.float64), torch.rand(6, 2, dtype=torch.float64)
    data = Extraction(Extractor(lambda a, b: a * b), make_data)((left, right, torch.zeros(6)))
    rows = torch.arange(6)
    slopes = torch.randn(2, 6, 2, dtype=torch.float64)
    found = data.pull_back(data.raw(rows), slopes)
    torch.testing.assert_close(found[0], slopes * right)
    torch.testing.assert_close(found[1], slopes * left)


def test_a_float32_network_below_a_float64_head(network) -> None:
    single = Counting().eval()
    single.load_state_dict({name: value.float() for name, value in network.state_dict().items()})
    data = Extraction(Extractor(single), make_data)((X, Y))
    slopes = torch.randn(1, 2, 18, dtype=torch.float64)
    raw = data.raw(torch.arange(2))
    found = data.pull_back(raw, slopes)
    wide = Extraction(Extractor(network), make_data)((X, Y)).pull_back(raw, slopes)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wide, rtol=1e-4, atol=1e-5)


def test_whole_images_of_bytes_cannot_be_moved_a_little() -> None:
    images = (255 * X).to(torch.uint8)
    data = Extraction(Extractor(lambda x: x.double().flatten(1)), make_data)((images, Y))
    with pytest.raises(Unsupported, match=r"images.float\(\) / 255"):
        data.pull_back(data.raw(torch.arange(1)), torch.ones(1, 1, 25))


def test_what_torch_did_not_compute_has_no_derivative() -> None:
    def extractor(images: Tensor) -> np.ndarray:
        return images.detach().flatten(1).numpy()

    data = Extraction(Extractor(extractor), make_data)((X, Y))
    with pytest.raises(Unsupported, match="have no derivative"):
        data.pull_back(data.raw(torch.arange(1)), torch.ones(1, 1, 25))


# ---------------------------------------------------------------------- refusals


def extract(function: Any) -> ExtractedData:
    return Extraction(Extractor(function), make_data)((X, Y))


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm2d(1)])
def test_train_mode_is_refused(layer) -> None:
    module = nn.Sequential(layer, nn.Flatten()).double()
    with pytest.raises(TrainMode):
        extract(module)
    assert len(extract(module.eval())) == 40


def test_a_network_switched_to_train_mode_later_is_refused(network) -> None:
    module = nn.Sequential(network, nn.Dropout(0.5)).eval()
    data = extract(module)
    module.train()
    with pytest.raises(TrainMode):
        data.prepare(X[:1])


def test_a_callable_that_is_random_or_mixes_examples_is_refused() -> None:
    dropout = nn.Dropout(0.5)
    with pytest.raises(NotDeterministic):
        extract(lambda images: dropout(images).flatten(1))
    with pytest.raises(NotPerExample):
        extract(lambda images: images.flatten(1) - images.flatten(1).mean(0))


def test_features_that_are_not_numbers_are_refused_with_the_example() -> None:
    def extractor(images: Tensor) -> Tensor:
        made = images.flatten(1).clone()
        made[(images == X[17]).flatten(1).all(1), 3] = torch.nan
        return made

    with pytest.raises(NonFinite, match="position 17"):
        extract(extractor)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda images: images.flatten(1)[:-1], "for 40 raw inputs"),
        (lambda images: images.mean(), "returned the shape"),
        (lambda images: "features", "returned str"),
        (lambda images: images @ images.flatten(), "failed on inputs of shape"),
        (nn.Linear(7, 2).double().eval(), "Linear failed"),
    ],
)
def test_what_is_not_one_row_for_each_example_is_refused(function, message) -> None:
    with pytest.raises(BadData, match=message):
        extract(function)


def test_a_module_wants_numbers(network) -> None:
    with pytest.raises(BadData, match="as numbers"):
        Extraction(Extractor(network), make_data)((["a", "b"], [0, 1]))
