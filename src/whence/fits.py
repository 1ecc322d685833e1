"""A fitted method in a file: new queries are answered later, without a pass over the training data.

What is kept are the bases and eigenvalues of every layer, the gradients of the training data in
factors where the fit kept them, the gradient of the objective, and the report. Layers are found
again from the model on a few examples. The file belongs to one model, data and objective, by their
fingerprints; nothing in it is pickled.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.calculus.kronecker import Basis, Kronecker, KroneckerBlock, with_even_decay
from whence.calculus.layers import structure_of
from whence.calculus.pairing import Kept, KeptBlock
from whence.calculus.products import decay_diagonal
from whence.core.problem import Problem
from whence.curvature.base import KroneckerIHVP
from whence.errors import Stale, StoreError, Unsupported
from whence.methods import Fitted
from whence.methods.influence import FittedInfluence
from whence.store.archives import DAMAGE, read_archive
from whence.store.files import cannot_read, write_atomically
from whence.store.jsonable import as_json, json_text
from whence.version import __version__

FORMAT, VERSION = "whence fit", 2


def save_fit(fitted: Fitted, path: str | os.PathLike[str]) -> Path:
    """Writes a fitted `ekfac` or `kfac` as one .npz file.

    Args:
        fitted: what `fit` returned.
        path: of the file; an earlier one is replaced in one step.

    Returns:
        Where the file is.

    Raises:
        Unsupported: a method that is not made of layers.
        StoreError: it cannot be written; an earlier file is as it was.
    """
    if (
        not isinstance(fitted, FittedInfluence)
        or not isinstance(fitted.ihvp, KroneckerIHVP)
        or fitted.correction is not None
    ):
        name = fitted.report.get("curvature", type(fitted).__name__)
        raise Unsupported(
            found=f"A fit of {name}, plain or corrected, was to be saved.",
            why="Only the curvatures of layers, ekfac and kfac, are worth a file: others are as "
            "fast to fit again, or need the data for every query.",
            remedy='Use whence.fit(problem, "ekfac").',
        )
    ihvp = fitted.ihvp
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "whence": __version__,
        "problem": fitted.problem.fingerprint(),
        "names": [list(block.names) for block in ihvp.kronecker.structure.blocks],
        "dampings": list(ihvp.dampings),
        "data_scale": ihvp.data_scale,
        "change": fitted.change,
        "tolerance": ihvp.tolerance,
        "decays": [block.decay for block in ihvp.kronecker.blocks],
        "facts": dict(ihvp.facts),
        "report": dict(fitted.report),
        "is_kept": ihvp.kept is not None,
        "precision": ihvp.facts["precision"],
        "compress": fitted.compress,
    }
    arrays = {"gradient": fitted.gradient}
    for place, block in enumerate(ihvp.kronecker.blocks):
        arrays |= _of_basis(f"{place}/left", block.left) | _of_basis(f"{place}/right", block.right)
        arrays[f"{place}/values"] = block.values
    for place, kept in enumerate(ihvp.kept.blocks if ihvp.kept else ()):
        parts = {"right": kept.right, "left": kept.left, "scale": kept.scale}
        arrays |= {f"{place}/kept_{name}": x for name, x in parts.items() if x is not None}
    plain: dict[str, Any] = {name: _as_array(x) for name, x in arrays.items()}
    plain["metadata"] = np.array(json_text(as_json(metadata, "metadata")))
    target = Path(path)
    write_atomically(target, lambda file: np.savez(file, **plain))
    return target


def load_fit(problem: Problem, path: str | os.PathLike[str]) -> FittedInfluence:
    """Reads what `save_fit` wrote, for the problem that it was fitted to.

    Args:
        problem: the same model, data and objective.
        path: of the file.

    Returns:
        The fitted method, accepted wherever `method=` is.

    Raises:
        Stale: the file belongs to other parameters, data or objective.
        WrongVersion: written in a format that this version does not read.
        StoreError: no such file, or a damaged one.
    """
    source = Path(path)
    try:
        metadata, arrays = read_archive(source, kind=FORMAT, version=VERSION)
        return _restored(problem, source, metadata, arrays)
    except OSError as error:
        raise cannot_read(source, error) from error
    except DAMAGE as error:
        raise StoreError(
            found=f"{source} is no fit of whence, or a damaged one ({error}).",
            why="Half of it would give wrong effects.",
            remedy="Fit it again, and save it with whence.save_fit.",
        ) from error


def _restored(
    problem: Problem, path: Path, metadata: dict[str, Any], arrays: dict[str, np.ndarray]
) -> FittedInfluence:
    if metadata["problem"] != problem.fingerprint():
        raise Stale(
            found=f"{path} was fitted to other parameters, data or objective than {problem.name}.",
            why="Its curvature and gradients belong to that problem.",
            remedy="Fit it again: whence.save_fit(whence.fit(problem, method), path).",
        )
    decay = decay_diagonal(problem)
    structure = structure_of(problem)
    if decay is not None:
        structure = with_even_decay(problem, structure, decay.to(problem.parameters))
    if [list(block.names) for block in structure.blocks] != metadata["names"]:
        raise Stale(
            found=f"{path} holds other layers than the model shows today.",
            why="Its bases would meet the wrong parameters.",
            remedy="Fit it again; a change of whence or of the model's code can be the cause.",
        )
    precision = metadata["precision"]
    if precision != "full":
        structure = replace(structure, autocast=getattr(torch, precision))
    tensors = {name: torch.from_numpy(array).to(problem.device) for name, array in arrays.items()}
    blocks = tuple(
        KroneckerBlock(
            _to_basis(f"{place}/left", tensors),
            _to_basis(f"{place}/right", tensors),
            tensors[f"{place}/values"],
            decay,
        )
        for place, decay in enumerate(metadata["decays"])
    )
    kept = None
    if metadata["is_kept"]:
        rows = range(len(blocks))
        sides = [(tensors.get(f"{i}/kept_left"), tensors[f"{i}/kept_right"]) for i in rows]
        scales = [tensors.get(f"{i}/kept_scale") for i in rows]
        parts = zip(sides, scales, strict=True)
        kept = Kept(tuple(KeptBlock(*pair, scale) for pair, scale in parts))
    ihvp = KroneckerIHVP(
        Kronecker(problem, structure, blocks),
        tuple(metadata["dampings"]),
        metadata["data_scale"],
        kept,
        metadata["tolerance"],
        metadata["facts"],
    )
    fitted = FittedInfluence(
        problem, metadata["report"], ihvp, False, metadata["change"], tensors["gradient"]
    )
    compress = metadata["compress"]
    return replace(fitted, compress=compress, preview=ihvp if compress else None)


def _as_array(tensor: Tensor) -> np.ndarray:
    """As numpy knows it, which has no bfloat16."""
    plain = tensor.detach().cpu()
    return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()


def _of_basis(name: str, basis: Basis) -> dict[str, Tensor]:
    vectors = {} if basis.vectors is None else {f"{name}_vectors": basis.vectors}
    return {f"{name}_values": basis.values, **vectors}


def _to_basis(name: str, tensors: dict[str, Tensor]) -> Basis:
    return Basis(tensors.get(f"{name}_vectors"), tensors[f"{name}_values"])
