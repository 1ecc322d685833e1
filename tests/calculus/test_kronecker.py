"""Blocks against the dense Fisher information: bases, the best diagonal there, invariances."""

from functools import cache

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

import problems
from networks import CLASSES, COUNT, NETWORKS, drawn, problem_of
from problems import ALL
from whence.adapters import make_problem
from whence.calculus import kronecker
from whence.calculus.fisher import Fisher
from whence.calculus.gradients import gradients, output_hessians
from whence.calculus.kronecker import (
    ROWS,
    Basis,
    Kronecker,
    KroneckerBlock,
    Places,
    Plan,
    fit_kronecker,
)
from whence.calculus.products import CurvatureMatrix, decay_diagonal
from whence.core.problem import Problem
from whence.curvature.ekfac import EKFAC
from whence.errors import NonFinite, NumericsError
from whence.numerics import draws

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

DENSE = [
    *("multinomial", "class_weighted", "mlp", "conv", "tokens", "tied", "branching"),
    *("groups", "depthwise", "conv1d", "transposed", "layer norm", "own rms norm", "batch norm"),
    *("added", "scaled by one number", "a slice of a weight", "shared", "unrolled", "lstm"),
    *("language model", "tied language model", "attention", "padding"),
]
"""Models with up to 400 parameters, and up to 100 outputs, whose Fisher information is exact."""


def problem_named(name: str) -> Problem:
    return NETWORKS[name]() if name in NETWORKS else ALL[name]().problem


def fitted(
    problem: Problem, *, is_corrected: bool = True, fisher: str = "expected", seed: int = 0
) -> Kronecker:
    plan = Plan(Fisher(fisher, seed), 0.0, is_corrected)
    decay = decay_diagonal(problem)
    return fit_kronecker(problem, plan, decay, keeps=lambda structure: None)


@cache
def dense(name: str) -> Tensor:
    """(P, P) the data part of the Gauss-Newton matrix."""
    problem = problem_named(name)
    return CurvatureMatrix(problem, "ggn").dense() - torch.diag(decay_diagonal(problem))


def basis_vectors(found: Kronecker, place: int) -> Tensor:
    """(K, P) the basis of a block as directions of all parameters."""
    size = found.structure.blocks[place].size
    parts = [torch.zeros(size, *block.values.shape).double() for block in found.blocks]
    units = torch.eye(size).double().reshape(size, *found.blocks[place].values.shape)
    parts[place] = found.blocks[place].back(units)
    return found.structure.scatter(found.problem, parts)


# ------------------------------------------------------------------ the dense matrix


@pytest.mark.parametrize("name", DENSE)
def test_values_are_the_diagonal_of_the_fisher_information_in_the_bases(name):
    problem = problem_named(name)
    found, matrix = fitted(problem), dense(name)
    for place, block in enumerate(found.blocks):
        vectors = basis_vectors(found, place)
        assert_allclose(vectors @ vectors.T, torch.eye(len(vectors)), atol=1e-10)
        expected = ((vectors @ matrix) * vectors).sum(1)
        scale = float(matrix.abs().max())
        assert_allclose(block.values.flatten(), expected, rtol=1e-8, atol=1e-10 * scale)


@pytest.mark.parametrize("name", DENSE)
def test_no_other_diagonal_in_the_same_bases_is_nearer(name):
    """In the Frobenius norm; that of K-FAC is another one."""
    problem = problem_named(name)
    found, products = fitted(problem), fitted(problem, is_corrected=False)
    for place, block in enumerate(found.blocks):
        vectors = basis_vectors(found, place)
        matrix = vectors @ dense(name) @ vectors.T
        own = (matrix - torch.diag(block.values.flatten())).norm()
        nudge = 0.01 * drawn(*block.values.flatten().shape) * block.values.max()
        others = [products.blocks[place].values.flatten(), block.values.flatten() + nudge]
        for other in others:
            assert own <= (matrix - torch.diag(other)).norm() + 1e-12 * matrix.norm()


@pytest.mark.parametrize("name", DENSE)
def test_single_rows_are_exact_blocks(name):
    problem = problem_named(name)
    found = fitted(problem)
    for place, block in enumerate(found.structure.blocks):
        if block.kind != "single":
            continue
        vectors = basis_vectors(found, place)
        matrix = vectors @ dense(name) @ vectors.T
        assert_allclose(matrix, torch.diag(found.blocks[place].values.flatten()), atol=1e-9)


def test_the_trace_of_the_data_part_is_kept():
    """The mean eigenvalue is what damping is derived from."""
    problem = problems.conv().problem
    assert fitted(problem).mean() == pytest.approx(
        float(CurvatureMatrix(problem, "ggn").dense().trace()) / problem.size, rel=1e-9
    )


def test_extremes_are_those_of_the_blocks():
    problem = problems.mlp().problem
    found = fitted(problem)
    values = torch.cat([(block.values + block.decay).flatten() for block in found.blocks])
    assert found.smallest() == pytest.approx(float(values.min()))
    assert found.largest() == pytest.approx(float(values.max()))


# ------------------------------------------------------------------ products of factors


def test_without_correction_a_linear_layer_is_the_product_of_its_factors():
    problem = problems.multinomial().problem
    batch = problem.batch(torch.arange(len(problem)))
    x = torch.cat([batch.inputs, torch.ones(len(problem), 1)], 1)
    inputs = x.T @ x / len(x)
    slopes = output_hessians(problem, batch).mean(0)
    found = fitted(problem, is_corrected=False)
    v = drawn(4, problem.size)
    matrices = found.structure.gather(problem, v)[0][:, 0]
    vectors = basis_vectors(found, 0)
    product = (vectors.T * found.blocks[0].values.flatten()) @ vectors
    expected = found.structure.scatter(problem, [(slopes @ matrices @ inputs)[:, None]])
    assert_allclose(v @ product, expected, atol=1e-12)


def test_weights_and_inputs_that_are_independent_are_solved_exactly():
    """All pairs of an input and a base weight, with squared errors: F is a Kronecker product."""
    x, base = drawn(6, 3).repeat(4, 1), torch.linspace(0.2, 2, 4).double().repeat_interleave(6)
    model = nn.Linear(3, 2).double().eval()
    problem = make_problem(
        model, (x, drawn(24, 2)), loss="mse", weight_decay=0.1, sample_weight=base.numpy()
    )
    matrix = CurvatureMatrix(problem, "ggn").dense() + 0.03 * torch.eye(problem.size).double()
    v = drawn(3, problem.size)
    for is_corrected in (True, False):
        solved = fitted(problem, is_corrected=is_corrected).solve(v, (0.03,))
        assert_allclose(solved, torch.linalg.solve(matrix, v.T).T, rtol=1e-9)


def test_a_convolution_multiplies_the_sum_of_one_side_with_the_mean_of_the_other():
    """Its gradient is a sum over positions; l l^T is summed over them, r r^T averaged."""
    problem = NETWORKS["conv1d"]()
    found = fitted(problem, is_corrected=False)
    block = found.blocks[0]
    assert block.values[0] == pytest.approx(
        torch.outer(block.left.values[0], block.right.values[0]), rel=1e-10
    )
    image = problem.batch(torch.arange(COUNT)).inputs
    patches = image.unfold(2, 3, 1).permute(0, 2, 1, 3).reshape(-1, 9)
    patches = torch.cat([patches, torch.ones(len(patches), 1)], 1)
    expected = torch.linalg.eigvalsh(patches.T @ patches / len(patches))
    assert_allclose(block.right.values[0], expected, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------ the same in other words


def scores(problem: Problem, *, is_corrected: bool = True) -> Tensor:
    """(N, N) products of gradients with solved gradients."""
    rows = gradients(problem, problem.batch(torch.arange(len(problem))))
    found = fitted(problem, is_corrected=is_corrected)
    return rows @ found.solve(rows, (0.05,) * len(found.blocks)).T


@pytest.mark.parametrize("is_corrected", [True, False])
def test_turning_the_inputs_of_a_layer_changes_no_score(is_corrected):
    """W -> W Q and x -> Q^T x."""
    problem = problem_of(
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), drawn(COUNT, 5)
    )
    turn = torch.linalg.qr(drawn(5, 5)).Q
    x, y = problem.data.take(torch.arange(COUNT))
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
    state = problem.model.state_dict()
    model.load_state_dict({**state, "0.weight": state["0.weight"] @ turn})
    other = make_problem(model, (x @ turn, y), loss="cross_entropy", weight_decay=0.05)
    expected = scores(problem, is_corrected=is_corrected)
    assert_allclose(scores(other, is_corrected=is_corrected), expected, rtol=1e-8, atol=1e-9)


class Pixels(nn.Module):
    """A convolution whose window is a pixel, on images of one pixel; or the linear layer it is."""

    def __init__(self, *, is_linear: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4) if is_linear else nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        image = x if isinstance(self.layer, nn.Linear) else x[:, :, None, None]
        return self.head(torch.tanh(self.layer(image)).flatten(1))


class Unfolded(nn.Module):
    """A convolution, or a linear layer at every place of the unfolded image."""

    def __init__(self, *, is_linear: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3) if is_linear else nn.Conv2d(2, 3, 2, padding=1)
        self.head = nn.Linear(3 * 25, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            places = nn.functional.unfold(x, 2, padding=1).transpose(1, 2)
            found = self.layer(places).transpose(1, 2)
        else:
            found = self.layer(x)
        return self.head(torch.tanh(found).flatten(1))


@pytest.mark.parametrize("is_corrected", [True, False])
@pytest.mark.parametrize(("kind", "shape"), [(Pixels, (3,)), (Unfolded, (2, 4, 4))])
def test_a_convolution_is_the_linear_layer_of_its_patches(kind, shape, is_corrected):
    problem = problem_of(lambda: kind(is_linear=False), drawn(COUNT, *shape))
    model = kind(is_linear=True).double().eval()
    state = problem.model.state_dict()
    model.load_state_dict({**state, "layer.weight": state["layer.weight"].flatten(1)})
    other = make_problem(
        model, problem.data.take(torch.arange(COUNT)), loss="cross_entropy", weight_decay=0.05
    )
    expected = scores(problem, is_corrected=is_corrected)
    assert_allclose(scores(other, is_corrected=is_corrected), expected, rtol=1e-8, atol=1e-9)


class Copied(nn.Module):
    """Embedding and head of one tensor, or an embedding that the head uses as a plain product."""

    def __init__(self, *, is_tied: bool) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.is_tied = is_tied
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.tokens(tokens).mean(1))
        return self.head(h) if self.is_tied else h @ self.tokens.weight.T


def test_tied_weights_have_one_gradient_however_they_are_used():
    text = torch.arange(COUNT * 4).reshape(COUNT, 4) ** 2 % 5
    one, other = (problem_of(lambda it=it: Copied(is_tied=it), text) for it in (True, False))
    assert_allclose(scores(one), scores(other), atol=1e-12)


# ------------------------------------------------------------------ wide sides


def test_sides_that_are_too_wide_keep_their_coordinates(monkeypatch):
    """The diagonal is then that of the matrix itself along them."""
    monkeypatch.setattr(kronecker, "WIDEST_BASIS", 4)
    monkeypatch.setattr(kronecker, "WIDEST_ROW", 4)
    for name in ("conv", "tokens", "added", "tied"):
        problem = problem_named(name)
        found = fitted(problem)
        for place, block in enumerate(found.blocks):
            for basis in (block.left, block.right):
                assert (basis.vectors is None) == (basis.values.shape[1] > 4) or (
                    found.structure.blocks[place].kind == "lookup"
                )
            vectors = basis_vectors(found, place)
            expected = ((vectors @ dense(name)) * vectors).sum(1)
            assert_allclose(block.values.flatten(), expected, rtol=1e-8, atol=1e-11)


def test_a_table_keeps_its_tokens_as_coordinates():
    found = fitted(problems.tokens().problem)
    assert found.blocks[0].left.vectors is None
    assert found.blocks[0].right.vectors is not None


# ------------------------------------------------------------------ both ways to the same squares


@pytest.mark.parametrize("positions", [1, 2, 40])
@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (12, 2), (1, 6)])
@pytest.mark.parametrize("groups", [1, 3])
def test_gradients_are_rotated_the_same_by_either_way(groups, rows, columns, positions):
    left = drawn(4, groups, positions, rows)
    right = drawn(4, groups, positions, columns) + 1
    turns = [torch.linalg.qr(drawn(groups, d, d)).Q for d in (rows, columns)]
    bases = [Basis(turn, torch.ones(groups, len(turn[0])).double()) for turn in turns]
    block = KroneckerBlock(bases[0], bases[1], torch.zeros(groups, rows, columns).double(), 0.0)
    expected = turns[0].mT @ (left.mT @ right) @ turns[1]
    assert_allclose(kronecker.rotated(block, left, right), expected, atol=1e-11)
    assert_allclose(block.back(block.rotate(expected)), expected, atol=1e-11)
    squares = kronecker.squares(block, [(left, right), (2 * left, right)])
    assert_allclose(squares, 5 * (expected**2).sum(0), atol=1e-9)
    squares = kronecker.squares(block, [(left, right), (left, 3 * right)])
    assert_allclose(squares, 10 * (expected**2).sum(0), atol=1e-9)


# ------------------------------------------------------------------ rounds


def with_rounds(monkeypatch, first: int) -> None:
    monkeypatch.setattr(kronecker, "FIRST_ROUND", first)
    monkeypatch.setattr(kronecker, "FEWEST", 1)
    monkeypatch.setattr(kronecker, "ROWS", 1)


def noisy(count: int = 640) -> Problem:
    model = nn.Linear(4, 2).double().eval()
    return make_problem(
        model, (drawn(count, 4), torch.arange(count) % 2), loss="cross_entropy", weight_decay=0.1
    )


def test_rounds_end_at_the_accuracy_that_is_asked_for(monkeypatch):
    with_rounds(monkeypatch, 16)
    problem = noisy()

    def facts(accuracy: float) -> dict[str, float]:
        plan = Plan(Fisher("expected"), accuracy, True)
        decay = decay_diagonal(problem)
        return fit_kronecker(problem, plan, decay, keeps=lambda structure: None).facts

    used = [facts(accuracy)["examples_used"] for accuracy in (9.0, 0.05, 0.0)]
    assert used == sorted(used)
    assert used[0] == 16
    assert 16 < used[1] < 640
    assert used[2] == 640
    assert facts(0.05)["moment_error"] <= 0.05
    assert facts(0.05)["share_used"] == used[1] / 640
    assert facts(0.0)["moment_error"] == 0


def test_scores_are_off_by_about_what_is_stated(monkeypatch):
    """The mean over 40 seeds, within a factor of two and a half."""
    with_rounds(monkeypatch, 64)
    model = nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 2)).double().eval()
    data = drawn(640, 12), torch.arange(640) % 2
    problem = make_problem(model, data, loss="cross_entropy", weight_decay=1e-6)
    decay = decay_diagonal(problem)
    slopes = gradients(problem, problem.batch(torch.arange(640)))
    claimed, found = 0.0, 0.0
    for seed in range(40):
        monkeypatch.setattr(kronecker, "FEWEST", 640)  # the bases are those of all examples
        some, every = (
            fit_kronecker(
                problem,
                Plan(Fisher("expected", seed), accuracy, True),
                decay,
                keeps=lambda structure: None,
            )
            for accuracy in (1e9, 0.0)
        )
        assert some.facts["examples_used"] == 64
        few = slopes[:40]
        dampings = [0.1 * block.mean() for block in every.blocks]
        off = (some.solve(few, dampings) - every.solve(few, dampings)) @ slopes.T
        found += float(off.norm() / (every.solve(few, dampings) @ slopes.T).norm())
        claimed += some.facts["moment_error"]
    assert found / 2.5 < claimed < 2.5 * found


def test_a_block_of_one_row_is_exact_whatever_its_basis_was_made_from(monkeypatch):
    monkeypatch.setattr(kronecker, "FEWEST", 8)
    monkeypatch.setattr(kronecker, "ROWS", 1)
    model = nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 1)).double().eval()
    data = drawn(200, 5), drawn(200, 1)
    problem = make_problem(model, data, loss="mse", weight_decay=0.1)
    plan = Plan(Fisher("expected"), 0.01, True)
    found = fit_kronecker(problem, plan, decay_diagonal(problem), keeps=lambda structure: None)
    assert found.facts["basis_examples"] == 8
    matrix = CurvatureMatrix(problem, "ggn").dense()
    v, expected = drawn(3, problem.size), torch.zeros(3, problem.size).double()
    for part in (slice(0, 5), slice(5, 10), slice(10, 16)):  # scale, shift, weights with bias
        block = matrix[part, part] + 0.2 * torch.eye(part.stop - part.start).double()
        expected[:, part] = torch.linalg.solve(block, v[:, part].T).T
    assert_allclose(found.solve(v, [0.2] * len(found.blocks)), expected, rtol=1e-9)


def test_the_stated_error_is_that_of_the_moments(monkeypatch):
    """The relative error of the mean second moment, over 40 seeds, within a factor of two."""
    with_rounds(monkeypatch, 32)
    problem = noisy()
    exact = fitted(problem, is_corrected=False).blocks[0]
    gaps: list[float] = []
    claims: list[float] = []
    for seed in range(40):
        plan = Plan(Fisher("expected", seed), 1.0, False)
        found = fit_kronecker(problem, plan, decay_diagonal(problem), keeps=lambda structure: None)
        assert found.facts["examples_used"] == 32
        one, all_of = (moment(block.right) for block in (found.blocks[0], exact))
        gaps.append(float((one - all_of).norm() / all_of.norm()))
        claims.append(found.facts["moment_error"])
    ratio = (torch.tensor(claims).square().mean() / torch.tensor(gaps).square().mean()) ** 0.5
    assert 0.5 < float(ratio) < 2


def moment(basis: Basis) -> Tensor:
    return (basis.vectors * basis.values[:, None]) @ basis.vectors.mT


@pytest.mark.parametrize("size", [1, 7, 50])
def test_what_is_looked_at_depends_neither_on_batches_nor_on_order(size, monkeypatch):
    with_rounds(monkeypatch, 16)
    case = problems.multinomial()
    plan = Plan(Fisher("sampled"), 0.7, True)

    def solved(problem: Problem) -> tuple[int, Tensor]:
        found = fit_kronecker(problem, plan, decay_diagonal(problem), keeps=lambda structure: None)
        return found.facts["examples_used"], found.solve(drawn(3, problem.size), (0.1,))

    used, expected = solved(case.problem)
    assert 16 <= used < 60
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(kronecker, "batch_size", lambda *_: size)
    for problem in (case.problem, problems.rearranged(case, order)):
        again, actual = solved(problem)
        assert again == used
        assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


def test_gradients_that_are_kept_are_visited_once(monkeypatch):
    for first, is_corrected in ((16, True), (4096, True), (4096, False)):
        with_rounds(monkeypatch, first)
        problem = problems.multinomial().problem
        visited: list[Tensor] = []

        def visit(batch, factors, visited=visited) -> None:
            visited.append(batch.positions)

        plan = Plan(Fisher("expected"), 0.5, is_corrected)
        decay = decay_diagonal(problem)
        fit_kronecker(problem, plan, decay, keeps=lambda structure, visit=visit: visit)
        assert torch.equal(torch.cat(visited).sort().values, torch.arange(60))


# ------------------------------------------------------------------ decay


def test_a_bias_without_decay_stands_in_a_block_of_its_own():
    problem = problems.multinomial_free_intercept().problem
    found = fitted(problem)
    assert [block.names for block in found.structure.blocks] == [("weight",), ("bias",)]
    assert [block.decay for block in found.blocks] == pytest.approx([0.05, 0.0])


def test_solving_is_the_inverse_of_the_blocks_with_decay_and_damping():
    problem = problems.conv().problem
    found = fitted(problem)
    matrix = torch.zeros(problem.size, problem.size).double()
    dampings = [0.01 * (1 + place) for place in range(len(found.blocks))]
    for place, block in enumerate(found.blocks):
        vectors = basis_vectors(found, place)
        values = 1.5 * block.values.flatten() + 0.02 + dampings[place]
        matrix += (vectors.T * values) @ vectors
    v = drawn(3, problem.size)
    expected = torch.linalg.solve(matrix, v.T).T
    assert_allclose(found.solve(v, dampings, 1.5), expected, rtol=1e-8, atol=1e-9)


def test_directions_without_any_curvature_are_left_out():
    """No decay, no damping, and an input that is never there."""
    x = drawn(10, 3)
    x[:, 1] = 0
    model = nn.Linear(3, 1, bias=False).double().eval()
    problem = make_problem(model, (x, drawn(10)), loss="mse", weight_decay=0.0)
    solved = fitted(problem).solve(torch.eye(3).double(), (0.0,))
    assert bool(solved.isfinite().all())
    assert_allclose(solved[1], 0, atol=1e-12)


# ------------------------------------------------------------------ bases from some of the places


def conv_with_many_places() -> Problem:
    """400 pictures of 8 x 8, two convolutions; an eighth of 64 places is looked at."""
    layers = (nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3, padding=1), nn.Flatten())
    torch.manual_seed(0)
    model = nn.Sequential(*layers, nn.Linear(128, 3)).double().eval()
    data = drawn(400, 1, 8, 8), torch.arange(400) % 3
    return make_problem(model, data, loss="cross_entropy", weight_decay=1e-2)


def test_bases_from_some_of_the_places_are_nearly_those_from_all(monkeypatch):
    problem = conv_with_many_places()
    monkeypatch.setattr(kronecker, "WIDE", 1)
    some = fitted(problem, fisher="empirical")
    monkeypatch.setattr(kronecker, "PLACES", 64)
    every = fitted(problem, fisher="empirical")
    for a, b in zip(some.blocks, every.blocks, strict=True):
        assert_allclose(a.left.values, b.left.values, rtol=0.3)
        assert_allclose(a.right.values, b.right.values, rtol=0.3)
    vectors = drawn(3, problem.size)
    a, b = (found.solve(vectors, (0.01,) * len(found.blocks)) for found in (some, every))
    assert 0 < float((a - b).norm() / b.norm()) < 0.05


def test_places_are_the_own_ones_of_an_example_in_whichever_batch():
    everyone = Places(draws.keys(np.arange(40)), count=10**6).of(100, 300)
    few = Places(draws.keys(np.arange(30, 35)), count=10**6).of(100, 300)
    assert everyone.shape == (40, 12)
    assert torch.equal(everyone[30:35], few)
    assert len({tuple(row) for row in everyone.tolist()}) > 20
    assert all(len(set(row)) == 12 for row in everyone.tolist())


def test_a_side_gets_enough_rows_for_its_coordinates_or_all_there_are():
    keys = draws.keys(np.arange(5))
    assert Places(keys, count=100).of(100, 300).shape == (5, ROWS * 300 // 100)
    assert Places(keys, count=10).of(100, 300) is None
    assert Places(keys, count=10**6).of(8, 300) is None
    assert Places(keys, count=10**6).of(100, 20) is None


# ------------------------------------------------------------------ each gradient against itself


@pytest.mark.parametrize("name", ["mlp", "conv", "tokens", "tied", "branching"])
def test_squared_lengths_are_those_of_the_gradients(name):
    problem = ALL[name]().problem
    batch = problem.batch(torch.arange(len(problem)))
    plan = Plan(Fisher("expected"), 0.0, True)
    curve = fit_kronecker(problem, plan, decay_diagonal(problem), keeps=lambda structure: None)
    expected = gradients(problem, batch).square().sum(1)
    assert_allclose(curve.squared_lengths(batch), expected, rtol=1e-10)


@pytest.mark.parametrize(
    "case", ["mlp", "mlp_untrained", "conv", "tokens", "tied", "class_weighted"]
)
def test_self_products_are_those_of_solved_gradients(case):
    problem = problems.ALL[case]().problem
    ihvp = EKFAC(damping=0.01).fit(problem)
    batch = problem.batch(torch.arange(len(problem)))
    rows = gradients(problem, batch)
    expected = (rows * ihvp.solve(rows).vectors).sum(1)
    torch.testing.assert_close(ihvp.self_pair(batch), expected, rtol=1e-9, atol=1e-14)


# ------------------------------------------------------------------ what fails says where


@pytest.mark.parametrize("error", [NumericsError, NonFinite])
def test_a_basis_that_cannot_be_found_is_named_by_its_layer(error, monkeypatch):
    def fails(moment: Tensor) -> tuple[Tensor, Tensor]:
        raise error(found="It did not converge.", why="Why.", remedy="Remedy.")

    monkeypatch.setattr(kronecker, "eigenbasis", fails)
    with pytest.raises(error, match=r"^0.weight and 0.bias: It did not converge"):
        fitted(problems.mlp().problem)
