"""The losses and gradients of the embeddings chapter compile into one graph."""

import pytest
import torch

from companion.foundations import embeddings as emb


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


V, U, N = draw(5, 7, seed=0), draw(5, 7, seed=1), draw(5, 3, 7, seed=2)
TABLE, TARGET = draw(11, 7, seed=3), torch.tensor([3, 0, 10, 3, 7])
POSITIVE = draw(5, seed=4).abs() * 50
BLOCK = (draw(2, 5, 7, seed=5), draw(2, 11, 7, seed=6), draw(2, 5, 11, seed=7), draw(11, seed=8))

CASES = {
    "embed": (emb.embed, (TABLE, TARGET)),
    "skipgram_loss": (emb.skipgram_loss, (V, TABLE, TARGET)),
    "sgns_loss": (emb.sgns_loss, (V, U, N)),
    "sgns_gradients": (emb.sgns_gradients, (V, U, N)),
    "cbow_loss": (emb.cbow_loss, (N, U, N)),
    "glove_loss": (emb.glove_loss, (V, U, V[:, 0], U[:, 0], POSITIVE)),
    "block_loss": (emb.block_loss, BLOCK),
    "block_gradients": (emb.block_gradients, BLOCK),
}


@pytest.mark.parametrize("name", CASES)
def test_function_compiles_into_one_graph_and_agrees(name):
    function, inputs = CASES[name]
    torch.compiler.reset()
    # "aot_eager" captures and differentiates the whole graph, and needs no C++ compiler.
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), function(*inputs), rtol=1e-12, atol=1e-13)
