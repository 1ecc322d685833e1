"""The matrix I."""

import torch

import problems
from whence.curvature.identity import Identity


def test_vectors_come_back_as_they_are():
    v = torch.tensor([[1.0, -2.0, 3.0]])
    assert torch.equal(Identity().fit(problems.smooth_hinge().problem).solve(v).vectors, v)


def test_the_report_says_that_the_scale_means_nothing():
    report = Identity().fit(problems.ridge().problem).report
    assert report["is_calibrated"] is False
    assert report["curvature"] == "identity"
