"""What is seen of a use: its parameters, where its examples are, and both factors."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose
from torch import Tensor

from networks import drawn
from whence.calculus.watching import Axis, OneHot, Rows, Use, Watch, Window
from whence.errors import Unsupported
from whence.numerics.vectors import Layout

COUNT, PLACES, WIDTH, OUT = 5, 3, 4, 2


def watched(
    function: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    shape: tuple[int, ...],
    *,
    axis: Axis | None = None,
    count: int = COUNT,
) -> tuple[list[Use], Tensor, Tensor]:
    """The uses that are seen when a function of x and one parameter is called; both results."""
    layout = Layout({"before": torch.Size([3]), "p": torch.Size(shape), "after": torch.Size([2])})
    flat = drawn(layout.size)
    axes: dict[str, Axis] = {} if axis is None else {"p": axis}
    with Watch(layout, flat, count, axes=axes, guesses=axis is None) as watch:
        output = function(x, layout.split(flat)["p"])
    return watch.uses, output, layout.split(flat)["p"]


def gradients(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, p: Tensor, slope: Tensor):
    """(B, *shape) by one backward pass for each example, examples along the first axis."""
    rows: list[Tensor] = []
    for one in range(len(x)):
        leaf = p.clone().requires_grad_(True)
        (row,) = torch.autograd.grad((function(x, leaf) * slope)[one].sum(), leaf)
        rows.append(row)
    return torch.stack(rows)


# ------------------------------------------------------------------ parameters are known


SEEN: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "itself": (lambda x, p: x + p, (WIDTH,)),
    "slice": (lambda x, p: x + p[2 : 2 + WIDTH], (9,)),
    "every second": (lambda x, p: x + p[::2], (2 * WIDTH,)),
    "last of several": (lambda x, p: x * p[-1], (3, PLACES, WIDTH)),
    "transpose": (lambda x, p: x + p.T, (WIDTH, PLACES)),
    "expanded": (lambda x, p: x * p.expand(PLACES, WIDTH), (1, WIDTH)),
    "diagonal": (lambda x, p: x * p.diagonal(), (WIDTH, WIDTH)),
    "one number": (lambda x, p: x * p[1], (3,)),
}


@pytest.mark.parametrize("name", SEEN)
def test_a_view_of_a_parameter_is_that_part_of_it(name):
    function, shape = SEEN[name]
    x, slope = drawn(COUNT, PLACES, WIDTH), drawn(COUNT, PLACES, WIDTH)
    (use,), output, p = watched(function, x, shape)
    assert torch.equal(output, function(x, p))
    (piece,) = use.pieces
    left, right = piece.factors(slope)
    assert (piece.weight, piece.kind) == ("p", "single")
    assert bool((left == 1).all())
    expected = gradients(function, x, p, slope)
    assert_allclose(right.reshape(expected.shape), expected, atol=1e-13)


PRODUCTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "linear": (F.linear, (OUT, WIDTH)),
    "linear of a turned weight": (lambda x, p: F.linear(x, p.t()), (WIDTH, OUT)),
    "matmul": (torch.matmul, (WIDTH, OUT)),
    "matmul of a turned weight": (lambda x, p: x @ p.T, (OUT, WIDTH)),
    "some rows": (lambda x, p: F.linear(x, p[1:3]), (5, WIDTH)),
    "some columns": (lambda x, p: F.linear(x, p[:, 1 : 1 + WIDTH]), (OUT, 7)),
    "a corner turned": (lambda x, p: F.linear(x, p[1 : 1 + WIDTH, 2:5].T), (6, 5)),
    "square": (F.linear, (WIDTH, WIDTH)),
    "square turned": (torch.matmul, (WIDTH, WIDTH)),
    "one row": (F.linear, (1, WIDTH)),
    "one column": (lambda x, p: F.linear(x[..., :1], p), (OUT, 1)),
    "one column turned": (torch.matmul, (WIDTH, 1)),
    "a vector": (torch.matmul, (WIDTH,)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_with_a_view_has_the_factors_of_the_whole_weight(name):
    function, shape = PRODUCTS[name]
    x = drawn(COUNT, PLACES, WIDTH)
    (use,), output, p = watched(function, x, shape)
    slope = drawn(*output.shape)
    (piece,) = use.pieces
    left, right = piece.factors(slope)
    matrix = (left.mT @ right)[:, 0]
    matrix = matrix.mT if piece.is_transposed else matrix
    expected = gradients(function, x, p, slope)
    assert_allclose(matrix.reshape(expected.shape), expected, atol=1e-13)
    assert piece.factors(2 * slope)[1] is right, "what went in is the same for all slopes"


@pytest.mark.parametrize(
    "function",
    [
        lambda x, p: torch.einsum("bti,oi->bto", x, p),
        lambda x, p: x / p.sum(),
        lambda x, p: x + 2 * p.clone()[:1],
        lambda x, p: torch.add(x, p[:1], alpha=2),
        lambda x, p: x + 1,
    ],
)
def test_what_is_not_known_is_not_written_down(function):
    uses, _, _ = watched(function, drawn(COUNT, PLACES, WIDTH), (WIDTH, WIDTH))
    assert not uses


# ------------------------------------------------------------------ where examples are


@pytest.mark.parametrize(
    ("axis", "arranged"),
    [
        ("first", lambda x: x),
        ("first", lambda x: x.flatten(0, 1)),
        ("second", lambda x: x.transpose(0, 1)),
        ("inner", lambda x: x.transpose(0, 1).flatten(0, 1)),
    ],
)
def test_rows_of_every_arrangement_become_examples_first(axis, arranged):
    x = drawn(COUNT, PLACES, WIDTH)
    rows = Rows(COUNT, axis)
    assert torch.equal(rows.first(arranged(x)), x)
    assert torch.equal(rows.matrix(arranged(x)), x[:, None])


@pytest.mark.parametrize("shape", [(), (1,), (WIDTH,), (PLACES, 1), (1, WIDTH), (PLACES, WIDTH)])
@pytest.mark.parametrize("axis", ["first", "second"])
def test_sums_undo_broadcasts(axis, shape):
    """The shape of what was broadcast to (B, T, d), or to (T, B, d)."""
    x = drawn(COUNT, PLACES, WIDTH)
    expected = torch.stack([one.sum_to_size(shape) for one in x]).reshape(COUNT, -1)
    if axis == "second":
        x = x.transpose(0, 1)
        shape = (*shape[:-1], 1, *shape[-1:]) if len(shape) > 1 else shape
    found = Rows(COUNT, axis).summed(x, shape)
    assert_allclose(found.reshape(COUNT, -1), expected, atol=1e-13)


def test_sums_undo_broadcasts_over_flattened_positions():
    x = drawn(COUNT, PLACES, WIDTH)
    found = Rows(COUNT, "first").summed(x.flatten(0, 1), (WIDTH,))
    assert_allclose(found.reshape(COUNT, -1), x.sum(1))


def test_rows_that_are_not_those_of_all_examples_are_refused_with_their_number():
    with pytest.raises(Unsupported, match="3 rows for 5 examples"):
        Rows(5, "first").first(drawn(3, WIDTH))


def test_what_is_the_same_for_all_is_repeated_for_each():
    uses, output, _ = watched(
        lambda x, p: F.embedding(x, p), torch.arange(PLACES), (6, WIDTH), count=COUNT
    )
    assert output.shape == (COUNT, PLACES, WIDTH)
    left, _ = uses[0].pieces[0].factors(output)
    assert torch.equal(left.indices, torch.arange(PLACES).expand(COUNT, 1, -1))


def test_a_parameter_that_is_passed_over_is_called_as_it_is():
    layout, x = Layout({"p": torch.Size([WIDTH])}), drawn(COUNT, WIDTH)
    flat = drawn(WIDTH)
    with Watch(layout, flat, COUNT, axes={}) as watch:
        output = x * layout.split(flat)["p"]
    assert not watch.uses
    assert torch.equal(output, x * flat)
    assert not output.requires_grad


def test_an_input_that_is_overwritten_is_noticed():
    x = drawn(COUNT, WIDTH)
    (use,), _, _ = watched(torch.matmul, x, (WIDTH, OUT))
    assert not use.is_overwritten
    x += 1
    assert use.is_overwritten


def test_an_output_may_be_overwritten():
    (use,), output, _ = watched(lambda x, p: torch.relu_(x @ p), drawn(COUNT, WIDTH), (WIDTH, OUT))
    slope = torch.ones_like(output)
    (grad,) = torch.autograd.grad(output, use.place, slope)
    assert torch.equal(grad, (output > 0).to(slope))


# ------------------------------------------------------------------ patches, unit vectors


@pytest.mark.parametrize("stride", [1, (2, 1), (3, 2)])
@pytest.mark.parametrize("dilation", [1, (1, 2)])
@pytest.mark.parametrize("padding", [0, 1, (2, 1)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 2)])
def test_patches_are_those_of_unfold(kernel, padding, dilation, stride):
    image = drawn(2, 4, 6, 7)
    window = Window(kernel, stride=stride, padding=padding, dilation=dilation, groups=2)
    expected = F.unfold(image, kernel, dilation, padding, stride)
    assert torch.equal(window.patches(image), expected.unflatten(1, (2, -1)).mT)


@pytest.mark.parametrize("shape", [(3, 8), (3, 4, 5), (2, 3, 2, 3)])
def test_a_convolution_is_a_product_with_its_patches(shape):
    """In one, two and three dimensions."""
    axes = len(shape) - 1
    function = [F.conv1d, F.conv2d, F.conv3d][axes - 1]
    image, weight = drawn(2, *shape), drawn(4, shape[0], *[3] * axes)
    window = Window((3,) * axes, stride=1, padding="same", dilation=1, groups=1)
    output = function(image, weight, padding="same")
    product = window.patches(image)[:, 0] @ weight.flatten(1).T
    assert_allclose(product, window.pixels(output)[:, 0], atol=1e-12)
    assert product.shape[1] == math.prod(shape[1:])


def test_unit_vectors_are_written_out():
    unit = OneHot(torch.tensor([[[0, 2, 2]], [[1, 0, 1]]]), 3)
    expected = torch.eye(3)[unit.indices]
    assert torch.equal(unit.dense(torch.zeros(1)), expected)
