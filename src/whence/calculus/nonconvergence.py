"""What a model that is not at its optimum changes in the effect of a removal.

Training stopped at theta, with g = grad R(theta) not zero. One Newton step leads on to theta - u,
u = (H + damping I)^-1 g; with the weight of example i lowered by e it is another one,

    N(e) = -(H + damping I - (e/N) hess loss_i)^-1 (g - (e/N) grad loss_i)
    dN/de = (1/N) (H + damping I)^-1 [grad loss_i - (hess loss_i) u]         at e = 0

(base weights left out). The first term is the effect from where training stopped. The second
corrects it: to first order the bracket is the gradient of loss_i at theta - u, where the example
would be pulling if training had gone on. Under `renormalize` both terms are taken relative to
their means over the data, as removing the example gives the others more weight.

Source: Koh & Liang 2017 (arXiv:1703.04730), section 4.2 and its appendix, where up-weighting an
example by e (of the mean, so e = -1/N removes it) is compared with the Newton step
-(H + e hess L)^-1 (g + e grad L); its derivative in e, -H^-1 [grad L - (hess L) H^-1 g], is taken
here. The paper keeps grad L alone, and has the regulariser in L.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from whence.calculus.gradients import is_vectorised, residuals
from whence.calculus.products import CurvatureMatrix, hessian_product
from whence.calculus.stacking import StackedLinear
from whence.core.batches import Batch
from whence.core.changes import Change
from whence.core.problem import Problem


@dataclass(frozen=True)
class Correction:
    """The second term above, for every example.

    Args:
        problem: what was trained.
        step: (P,) u, the Newton step that training has left undone, to be subtracted from theta.
    """

    problem: Problem
    step: Tensor

    def along(self, psi: Tensor, batch: Batch) -> Tensor:
        """What comes off the first-order effects.

            out[k, b] = (1/N) psi_k^T (b_b hess loss_b - mean) u,      mean = 0 with N fixed

        Args:
            psi: (K, P) solved directions H^-1 v.
            batch: B examples.

        Returns:
            (K, B), unit of psi times the derivative of the loss.
        """
        bends = mixed_curvature(self.problem, psi, batch, step=self.step) * batch.weights
        return (bends - (psi @ self._mean)[:, None]) / len(self.problem)

    def of(self, change: Change, divisor: float) -> Tensor:
        """(P,) what comes off the force of a change: (hess loss) u of what leaves and comes.

            sum_leaving b_k (hess loss_k) u - sum_coming c_k (hess loss_k) u - (N - divisor) mean u

        Args:
            change: what becomes of some examples.
            divisor: what the sum of losses is divided by afterwards.
        """
        problem, total = self.problem, torch.zeros_like(self.step)
        size = problem.batch_size(stack=2)
        for sign, examples in ((1, change.leaving), (-1, change.coming)):
            for batch, weights in examples(problem, size):
                weighted = replace(batch, weights=sign * weights)
                total += hessian_product(problem, self.step[None], weighted)[0]
        return total - (len(problem) - divisor) * self._mean

    @cached_property
    def _mean(self) -> Tensor:
        """(P,) (1/N) sum_i b_i (hess loss_i) u under `renormalize`, else zero."""
        if not self.problem.renormalize:
            return torch.zeros_like(self.step)
        matrix, rows = CurvatureMatrix(self.problem), self.step[None]
        return (matrix(rows) - matrix.penalty_product(rows))[0]


def mixed_curvature(problem: Problem, psi: Tensor, batch: Batch, *, step: Tensor) -> Tensor:
    """Curvature of each loss between directions and one step.

        out[k, b] = psi_k^T (hess loss_b) u = (J_b psi_k)^T S_b (J_b u) + r_b^T (hess f_b)[psi_k, u]

    The model is differentiated twice forwards, all directions together, so that no per-example
    gradient is built.

    Args:
        problem: model and loss.
        psi: (K, P) directions.
        step: (P,) u.
        batch: B examples; base weights are not applied.

    Returns:
        (K, B).
    """
    if not is_vectorised(problem):
        return _looped_curvature(problem, psi, step, batch)

    def along_step(theta: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and their change along the step."""
        moved = jvp(lambda t: problem.outputs(t, batch.inputs), (theta,), (step,))
        return moved[0], moved[1]

    def losses(values: Tensor) -> Tensor:
        return problem.loss(values, cast("Tensor", batch.targets)).sum()

    pull = residuals(problem, batch)  # (B, C)
    with torch.no_grad(), StackedLinear():
        values, moved = along_step(problem.parameters)
        bent = jvp(grad(losses), (values,), (moved,))[1].reshape(pull.shape)  # S J u

        def one(v: Tensor) -> Tensor:
            first, second = jvp(along_step, (problem.parameters,), (v,))[1]
            return (first.reshape(pull.shape) * bent + second.reshape(pull.shape) * pull).sum(1)

        return vmap(one)(psi)


def _looped_curvature(problem: Problem, psi: Tensor, step: Tensor, batch: Batch) -> Tensor:
    """The same in reverse: how psi^T (hess sum_b c_b loss_b) u changes with each c_b."""
    theta = problem.parameters.detach().clone().requires_grad_(True)
    shares = torch.ones_like(batch.weights).requires_grad_(True)
    total = (shares * problem.losses(theta, batch)).sum()
    (slope,) = torch.autograd.grad(total, theta, create_graph=True)
    if not slope.requires_grad:  # a loss that is linear in the parameters
        return psi.new_zeros(len(psi), len(batch))
    (product,) = torch.autograd.grad(slope @ step, theta, create_graph=True, materialize_grads=True)
    rows = [
        torch.autograd.grad(product @ v, shares, retain_graph=True, materialize_grads=True)[0]
        for v in psi
    ]
    return torch.stack(rows)
