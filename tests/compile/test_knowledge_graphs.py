"""Scores, losses and layers of knowledge graphs compile to one graph that computes the same."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from companion.core import randn
from companion.knowledge.knowledge_graphs import (
    GCN,
    ComplEx,
    DistMult,
    LinkModel,
    RotatE,
    TransE,
    attend_with_facts,
    neighbor_softmax,
    neighbor_sum,
    self_adversarial_loss,
)

EDGES = torch.tensor([[0, 1, 2, 4, 6, 3], [3, 3, 0, 5, 1, 1]])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", [TransE, DistMult, ComplEx, RotatE])
def test_models_compile_with_their_gradients(kind: Callable[..., LinkModel]) -> None:
    model = kind(7, 3, dim=10, generator=torch.Generator().manual_seed(0)).double()
    facts = torch.tensor([[0, 1, 2], [5, 0, 6]])
    wrong = torch.tensor([[[0, 1, 3], [4, 1, 2]], [[5, 0, 1], [3, 0, 6]]])

    def loss() -> Tensor:
        return self_adversarial_loss(model(facts), model(wrong), margin=2.0, temperature=0.5)

    compiled = torch.compile(loss, fullgraph=True)
    have, want = compiled(), loss()
    torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-14)
    for one, two in zip(
        torch.autograd.grad(have, list(model.parameters())),
        torch.autograd.grad(want, list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_layers_compile() -> None:
    h = numbers(7, 5)
    g = torch.Generator().manual_seed(0)
    dense = GCN(5, 3, generator=g).double()
    matrix = numbers(7, 7, seed=1)
    torch.testing.assert_close(torch.compile(dense, fullgraph=True)(h, matrix), dense(h, matrix))
    together = torch.compile(neighbor_sum, fullgraph=True)
    torch.testing.assert_close(together(h, EDGES), neighbor_sum(h, EDGES))
    beside = torch.compile(attend_with_facts, fullgraph=True)
    rows = (h[:3], h, h, numbers(2, 5, seed=2), numbers(2, 5, seed=3))
    torch.testing.assert_close(beside(*rows), attend_with_facts(*rows))


def test_softmax_over_neighbors_compiles() -> None:
    # A layer of GAT first removes loops; how many there are depends on numbers, so a graph breaks.
    def weights(scores: Tensor) -> Tensor:
        return neighbor_softmax(scores, EDGES, nodes=7)

    scores = numbers(6, 2)
    torch.testing.assert_close(torch.compile(weights, fullgraph=True)(scores), weights(scores))
