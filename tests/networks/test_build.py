"""A compiled network computes the same, forwards and backwards, and one compilation serves all blocks."""

import shutil
from dataclasses import replace

import pytest
import torch

from fmad_dist.base.errors import UserError
from fmad_dist.networks.build import compile_network
from tests.networks.test_dit import SPEC, inputs, randomised


def test_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the first batch, by a traceback."""
    monkeypatch.setenv("PATH", "")
    variable = "CC" if torch.cuda.is_available() else "CXX"
    monkeypatch.delenv(variable, raising=False)
    network = randomised(SPEC)
    with pytest.raises(UserError, match="needs a compiler and finds none: install g"):
        compile_network(network)
    monkeypatch.setenv(variable, "/nowhere/cc")
    with pytest.raises(UserError, match=f"let {variable} name another one"):
        compile_network(network)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_network_computes_the_same() -> None:
    from torch._dynamo.utils import counters

    spec = replace(SPEC, depth=4)
    plain, compiled = randomised(spec), randomised(spec)
    compile_network(compiled, scoring=True)
    counters.clear()
    for batch in (3, 5):
        x, t = inputs(batch, spec)
        x.requires_grad_(True)
        expected, found = plain(x, t), compiled(x, t)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for seed in range(2):  # twice through the same graph, as the density does
            vector = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
            (wanted,) = torch.autograd.grad(expected, x, vector, retain_graph=True)
            (got,) = torch.autograd.grad(found, x, vector, retain_graph=True)
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1
