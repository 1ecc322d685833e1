"""Linear layers under a stack of parameter vectors.

`vmap` over K parameter directions turns `x @ W.T` into K small products, each of which reads x
again. Written as `(W @ x.T).T` the same vmap is one (K * d_out, d_in) x (d_in, B) product.
Measured on 784 inputs, 10 outputs, K = 60, B = 2000, two cores: 75 ms against 24 ms (a bare
matrix product of this size takes 16 ms).
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class StackedLinear(TorchFunctionMode):
    """Inside this context `F.linear` multiplies from the left; values differ only in rounding."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replaces `F.linear` and passes everything else through."""
        del types
        if func is F.linear:
            return _linear_from_the_left(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear_from_the_left(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    flat = input.reshape(-1, input.shape[-1])
    product = (weight @ flat.T).T.reshape(*input.shape[:-1], weight.shape[0])
    return product if bias is None else product + bias
