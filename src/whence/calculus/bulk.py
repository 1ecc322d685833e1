"""Many trainings at once that differ in nothing but their weights and seeds.

Runs of one *group* go side by side from the first step to the last, so that the batches of a seed
are made once for all its runs. Within a group, the gradients of a *stack* of runs are one call: a
small model costs mostly the Python and the start of each operation, and both are shared. Runs of
several seeds in a stack see batches of their own, which are then inputs of the same call. A stack
is as large as its numbers fit the cache; models whose single run fills it are trained one by one,
which is then the fastest way. How runs are grouped changes results by rounding only, and the same
call always groups them in the same way.

What that brings, and that convolutions gain nothing from it: `benchmarks/retraining_in_bulk.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map, tree_map_only

from whence.calculus.gradients import is_vectorised
from whence.calculus.tracing import Traced
from whence.core.batches import Batch, Tree
from whence.errors import BadArgument, Diverged, TooLarge
from whence.progress import breathe, track

if TYPE_CHECKING:
    from whence.calculus.training import Course

T = TypeVar("T")

Kind = Callable[..., Tensor]
"""How the gradients of a stack are taken: of one run, of runs of one seed, or of several seeds."""

_STACK_BYTES = 8 * 2**20
"""Parameters and activations of a stack; more leave the cache of a core and are slower."""

_DEVICE_STACK_BYTES = 2**30
"""The same on an accelerator, which is idle with less."""

_CALLS_OF_A_GRAPH = 300
"""Making one takes a quarter of a second; each call then saves one or two thousandths."""


# ---------------------------------------------------------------------------- from start to end


def run(courses: "Sequence[Course]", weights: Tensor) -> Tensor:
    """The last state of M trainings.

    Args:
        courses: (M,) of each; the same one for trainings from one seed.
        weights: (M, N).

    Returns:
        (M, S, P).

    Raises:
        Diverged: a run whose gradient is not a number.
        TooLarge: not even one run fits the memory.
    """
    return states(courses, weights, [courses[0].steps])[0]


def states(courses: "Sequence[Course]", weights: Tensor, after: Sequence[int]) -> Tensor:
    """The states of M trainings on their way: checkpoints.

    Args:
        courses: (M,) of each; the same one for trainings from one seed.
        weights: (M, N).
        after: K numbers of steps, ascending; 0 is the start and `steps` of a course the end.

    Returns:
        (K, M, S, P).

    Raises:
        BadArgument: a number outside 0 to T, or out of order.
        Diverged: a run whose gradient is not a number.
        TooLarge: not even one run fits the memory.
    """
    _check_places(courses[0], after)

    def visited(rows: range) -> Tensor:
        some = slice(rows.start, rows.stop)
        steps = Group(courses[some], weights[some], rows).steps(until=after[-1])
        kept = [torch.cat(stacks) for done, stacks in steps if done in after]
        return torch.stack(kept)

    size = group_size(courses[0], kept=len(after))
    return torch.cat(list(in_groups(visited, len(weights), size)), 1)


def group_size(course: "Course", *, kept: int = 1) -> int:
    """How many runs the memory of the training allows side by side.

    Args:
        course: of any of them.
        kept: how many states of each are kept.
    """
    slots = course.optimizer.slots + 1
    numbers = (slots * (kept + 2) + 2) * course.problem.size  # old and new state, two gradients
    return max(1, course.training.memory // (numbers * course.problem.parameters.element_size()))


def in_groups(work: Callable[[range], T], runs: int, size: int) -> Iterator[T]:
    """What a function makes of one group of runs after the other.

    Where memory runs out, the group is halved and begun again.

    Args:
        work: takes the places of the runs of a group.
        runs: M.
        size: runs a group.

    Raises:
        TooLarge: memory runs out with a single run.
    """
    done = 0
    while done < runs:
        rows = range(done, min(done + size, runs))
        try:
            found = work(rows)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(rows) == 1:
                raise _too_large(error) from error
            size = len(rows) // 2
            continue
        yield found
        done += len(rows)


def _is_out_of_memory(error: Exception) -> bool:
    is_known = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
    return is_known or "can't allocate memory" in str(error)


def _too_large(error: Exception) -> TooLarge:
    return TooLarge(
        found=f"Memory ran out with a single training ({str(error).splitlines()[0]}).",
        why="Its parameters, the memory of its optimizer and one batch have to fit.",
        remedy="Halve batch_size, which changes the training, or use a machine with more memory.",
    )


def _check_places(course: "Course", after: Sequence[int]) -> None:
    is_ascending = all(a < b for a, b in pairwise(after))
    if not after or not is_ascending or not 0 <= after[0] <= after[-1] <= course.steps:
        raise BadArgument(
            found=f"States after {list(after)} steps were asked for.",
            why=f"This training has {course.steps} steps, and passes each of them once.",
            remedy=f"Give numbers from 0 to {course.steps}, each once and in ascending order.",
        )


# ---------------------------------------------------------------------------- step by step


@dataclass(frozen=True, eq=False)
class Group:
    """Trainings side by side.

    Args:
        courses: (m,) of each; the same one for trainings from one seed.
        weights: (m, N).
        rows: (m,) their places among all that were asked for.
    """

    courses: "Sequence[Course]"
    weights: Tensor
    rows: Sequence[int]

    @property
    def course(self) -> "Course":
        """What all runs have in common: everything but starts and batches."""
        return self.courses[0]

    def steps(
        self, *, until: int, state: Tensor | None = None, done: int = 0
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """The states of all runs after each step, beginning with those before the first.

        Args:
            until: the number of steps after which they end.
            state: (m, S, P) from which they go on; default the start.
            done: the number of steps that led there.

        Yields:
            Steps done, and the states as stacks (k, S, P).

        Raises:
            Diverged: a gradient is not a number.
        """
        course = self.course
        state = self._start() if state is None else state.clone()
        size = stack_size(self.courses)
        stacks = list(state.split(size))
        weights = self.weights.to(state).split(size)
        rows = [slice(place, place + size) for place in range(0, len(self.rows), size)]
        batches = Batches()
        slopes = Slopes(course, len(stacks) * course.steps)
        yield done, stacks
        label = f"Training {len(self.rows)} models at once"
        for at in track(range(done, until), label):
            for stack, of, some in zip(stacks, weights, rows, strict=True):
                breathe()
                batch = batches.of(self.courses[some], at)
                slope = slopes(stack[:, 0].contiguous(), batch, of)
                self._check(slope, self.rows[some], at)
                course.update_(stack, slope, at=at)
            yield at + 1, stacks

    def _start(self) -> Tensor:
        """(m, S, P) the states before the first step."""
        starts = {course: course.start() for course in dict.fromkeys(self.courses)}
        return torch.stack([starts[course] for course in self.courses])

    def _check(self, slope: Tensor, rows: Sequence[int], at: int) -> None:
        """Refuses runs whose gradient is not a number: their later parameters would be none."""
        if bool(slope.sum().isfinite()):
            return
        bad = torch.nonzero(~slope.isfinite().all(1)).flatten().tolist()
        if bad:
            raise Diverged(
                found=f"Step {at} of {self.course.steps}, at the learning rate "
                f"{self.course.lr(at):.3g}: the gradient is NaN or infinite in training "
                f"{', '.join(str(rows[place]) for place in bad[:3])} (by row of the weights, from "
                f"0; {len(bad)} of {len(rows)} side by side).",
                why="Every later parameter of such a training would be NaN.",
                remedy="Lower the learning rate, or clip gradients: Training(clip=1.0).",
            )


def stack_size(courses: "Sequence[Course]") -> int:
    """How many of m runs go into one stack; as even as they can be."""
    runs, course = len(courses), courses[0]
    problem = course.problem
    if not is_vectorised(problem):
        return 1
    own = 0 if _is_one(courses) else problem.input_size
    batch = min(course.training.batch_size, len(problem)) * (own + problem.activation_size)
    numbers = batch + (course.optimizer.slots + 2) * problem.size
    is_cpu = problem.device.type == "cpu"
    room = _STACK_BYTES if is_cpu else _DEVICE_STACK_BYTES
    most = max(1, room // (numbers * problem.parameters.element_size()))
    return -(-runs // -(-runs // most))


def _is_one(courses: "Sequence[Course]") -> bool:
    return all(course is courses[0] for course in courses)


class Batches:
    """What the runs of a stack see in a step. Stacks of one seed are handed the same batch."""

    def __init__(self) -> None:
        self._last: tuple[Course, int] | None = None
        self._batch: Batch | None = None

    def of(self, courses: "Sequence[Course]", at: int) -> Batch:
        """The batch of a step; of runs from k seeds, with an axis (k, B) in place of (B,)."""
        if not _is_one(courses):
            return _side_by_side(courses, at)
        if self._batch is None or self._last != (courses[0], at):
            self._last, self._batch = (courses[0], at), courses[0].batch(at)
        return self._batch


def _side_by_side(courses: "Sequence[Course]", at: int) -> Batch:
    """The batches of k runs in one, taken from the data at once where nothing augments them."""
    places = torch.stack([course.positions(at) for course in courses])  # (k, B)
    if courses[0].training.augment is None:
        batch = courses[0].problem.batch(places.flatten())
        parts = tree_map_only(Tensor, lambda leaf: leaf.unflatten(0, places.shape), batch.parts)
    else:
        parts = tree_map(_stacked, *(course.batch(at).parts for course in courses))
    inputs, targets, base = parts
    return Batch(inputs, targets, places, base)


def _stacked(*leaves: Any) -> Any:
    return torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0]


class Slopes:
    """Gradients of the loss of a step, for stacks of runs.

        out[m] = d loss(theta_m; w_m) / d theta

    Args:
        course: of the runs.
        calls: how often they will be asked for.
    """

    def __init__(self, course: "Course", calls: int) -> None:
        self._loss = course.loss
        self._full = min(course.training.batch_size, len(course.problem))
        self._pays = calls >= _CALLS_OF_A_GRAPH
        kinds = self._of_one, self._of_one_seed, self._of_several
        self._graphs = {kind: Traced(kind, patience=1) for kind in kinds}
        self._prepared: set[tuple[Kind, torch.Size]] = set()

    def __call__(self, thetas: Tensor, batch: Batch, weights: Tensor) -> Tensor:
        """Gradients (k, P) of k runs.

        Args:
            thetas: (k, P).
            batch: from `Batches`.
            weights: (k, N) of all examples.
        """
        places = batch.positions.to(weights.device)
        if places.ndim == 2:
            kind, at = self._of_several, (thetas, weights.gather(1, places))
        elif len(thetas) > 1:
            kind, at = self._of_one_seed, (thetas, weights[:, places])
        else:
            kind, at = self._of_one, (thetas[0], weights[0, places])
        parts = batch.parts
        if self._pays and places.shape[-1] == self._full:
            self._prepare(kind, at, parts)
            kind = self._graphs[kind]
        return kind(*at, *parts).view_as(thetas)

    def _prepare(self, kind: Kind, at: tuple[Tensor, Tensor], parts: tuple[Tree, ...]) -> None:
        """Has the graph made and compared before it counts.

        A training that goes on after an interruption computes every step as one that had none.
        """
        known = kind, at[0].shape
        if known not in self._prepared:
            self._prepared.add(known)
            for scale in (1.0, 1.5):
                self._graphs[kind](scale * at[0], at[1], *parts)

    def _of_one(self, theta: Tensor, weights: Tensor, *parts: Tree) -> Tensor:
        return grad(self._loss)(theta, Batch.of_parts(*parts), weights)

    def _of_one_seed(self, thetas: Tensor, weights: Tensor, *parts: Tree) -> Tensor:
        return self._of_many((None, None, None), thetas, weights, parts)

    def _of_several(self, thetas: Tensor, weights: Tensor, *parts: Tree) -> Tensor:
        axes = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, parts)
        return self._of_many(axes, thetas, weights, parts)

    def _of_many(self, axes: Tree, thetas: Tensor, weights: Tensor, parts: Tree) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # fused attention would go run by run
            return vmap(self._of_one, in_dims=(0, 0, *axes))(thetas, weights, *parts)
