"""The measures of collapse compile to one graph, and the graph computes the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from companion.transformer.cost import collapse_bound, rank_residual, token_diameter


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True)


@pytest.mark.parametrize(
    "function",
    [
        rank_residual,
        token_diameter,
        lambda X: collapse_bound(token_diameter(X), 1.3, layers=2),
    ],
    ids=["residual", "diameter", "bound"],
)
def test_functions_of_tokens_compile(
    function: Callable[[Tensor], Tensor], g: torch.Generator
) -> None:
    X = torch.randn(2, 3, 5, 7, generator=g, dtype=torch.float64)
    torch.testing.assert_close(compiled(function)(X), function(X), rtol=1e-12, atol=1e-14)
