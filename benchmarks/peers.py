"""The library that the benchmarks of EK-FAC compare with, used as its documentation says.

It rewrites the module that it is given, so each analysis gets a copy. What is done to keep it fast:
batches are cut out of tensors as a whole instead of being put together from single examples, all
queries are answered in one pass over the training data where memory allows it, and nothing is
logged. Its scores say what adding an example does, for N examples together; divided by N they are
effects of a removal in the sign and unit of whence.
"""

import copy
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from works import Work, measurement

IS_INSTALLED = find_spec("kronfluence") is not None
MISSING = "kronfluence is not installed: pip install -c constraints.txt -e '.[bench]'"


class Rows(Dataset):
    """Inputs and targets, cut in whole batches; `repeats` shows all of them several times."""

    def __init__(self, inputs: Tensor, targets: Tensor, repeats: int = 1) -> None:
        self.inputs, self.targets, self.repeats = inputs, targets, repeats

    def __len__(self) -> int:
        return self.repeats * len(self.targets)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        return self.inputs[place % len(self.targets)], self.targets[place % len(self.targets)]

    def __getitems__(self, places: list[int]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor(places) % len(self.targets)
        return self.inputs[rows], self.targets[rows]


class Kronfluence:
    """EK-FAC by kronfluence for one model.

    Args:
        work: data and measurement.
        model: in eval mode.
        folder: for the files that it writes.
        batch: training examples a batch.
        strategy: "ekfac", "kfac", "diagonal" or "identity".
        repeats: labels sampled per example; it draws one.
    """

    def __init__(
        self,
        work: Work,
        model: nn.Module,
        folder: str | Path,
        *,
        batch: int,
        strategy: str = "ekfac",
        repeats: int = 1,
    ) -> None:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments
        from kronfluence.utils.dataset import DataLoaderKwargs

        self.work, self.batch, self.repeats = work, batch, repeats
        self.data = Rows(*work.train)
        self.loading = DataLoaderKwargs(collate_fn=as_it_is)
        self.factors = FactorArguments(
            strategy=strategy, covariance_max_examples=None, lambda_max_examples=None
        )
        task = _task(work)
        self.analyzer = Analyzer(
            analysis_name=work.name,
            model=prepare_model(copy.deepcopy(model), task),
            task=task,
            cpu=True,
            log_level=logging.ERROR,
            disable_tqdm=True,
            output_dir=str(folder),
        )

    def fit(self, seed: int = 0) -> None:
        """Covariances, eigenvectors and eigenvalues, from labels that the model itself draws."""
        torch.manual_seed(seed)
        self.analyzer.fit_all_factors(
            factors_name="factors",
            dataset=Rows(*self.work.train, self.repeats),
            per_device_batch_size=self.batch,
            factor_args=self.factors,
            dataloader_kwargs=self.loading,
            overwrite_output_dir=True,
        )

    def scores(
        self,
        damping: float | None,
        *,
        together: int | None = None,
        low_rank: int | None = None,
    ) -> np.ndarray:
        """(Q, N) effects of a removal.

        Args:
            damping: added to the eigenvalues; None is its heuristic, a tenth of their mean.
            together: queries whose gradients are held at once, by default all.
            low_rank: of its compressed query gradients, by default none.
        """
        from kronfluence.arguments import ScoreArguments

        queries = Rows(*self.work.queries)
        self.analyzer.compute_pairwise_scores(
            scores_name="scores",
            factors_name="factors",
            query_dataset=queries,
            train_dataset=self.data,
            per_device_query_batch_size=min(together or len(queries), len(queries)),
            per_device_train_batch_size=self.batch,
            score_args=ScoreArguments(damping_factor=damping, query_gradient_low_rank=low_rank),
            dataloader_kwargs=self.loading,
            overwrite_output_dir=True,
        )
        found = self.analyzer.load_pairwise_scores("scores")["all_modules"]
        return found.numpy() / len(self.data)

    def parameters(self) -> list[str]:
        """Names of the modules that it covers."""
        from kronfluence.module.utils import get_tracked_module_names

        return list(get_tracked_module_names(self.analyzer.model))


def as_it_is(batch: Any) -> Any:
    """A batch that is already one."""
    return batch


def _task(work: Work) -> Any:
    from kronfluence.task import Task

    class Classes(Task):
        """Cross-entropy, of given or of drawn labels, summed over examples and positions."""

        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            inputs, targets = batch
            outputs = model(inputs)
            if sample:
                with torch.no_grad():
                    shares = outputs.detach().movedim(1, -1).softmax(-1)
                    drawn = torch.multinomial(shares.flatten(0, -2), 1)
                targets = drawn.view(targets.shape)
            return F.cross_entropy(outputs, targets, reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            inputs, targets = batch
            return measurement(work, model(inputs), targets).sum()

    return Classes()


def covered(model: nn.Module) -> list[str]:
    """Names of the parameters that kronfluence covers: those of linear layers and convolutions."""
    return [
        f"{name}.{kind}"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        for kind, parameter in module.named_parameters(recurse=False)
        if parameter is not None
    ]
