"""The field's sums, paths and fusion compile to one graph each, and compute the same."""

import pytest
import torch
from torch import Tensor

from companion.core import randn
from companion.knowledge import entity_linking as el

Y = torch.tensor([[0, 3, 1, 2], [2, 2, 4, -100]])
REAL = torch.tensor([[True, True, True, True], [True, True, True, False]])


def numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return randn(*shape, generator=generator, dtype=torch.float64)


def test_the_loss_compiles_with_its_gradients() -> None:
    def loss(psi: Tensor, T: Tensor) -> Tensor:
        return el.crf_nll(psi, Y, T, real=REAL)

    compiled = torch.compile(loss, fullgraph=True)
    scores = numbers(2, 4, 5, seed=0).requires_grad_(), numbers(5, 5, seed=1).requires_grad_()
    have, want = compiled(*scores), loss(*scores)
    torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-13)
    for mine, its in zip(
        torch.autograd.grad(have, scores), torch.autograd.grad(want, scores), strict=True
    ):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("what", ["viterbi", "k_best", "marginals", "entropy"])
def test_decoding_compiles(what: str) -> None:
    def run(psi: Tensor, T: Tensor) -> tuple[Tensor, ...]:
        if what == "viterbi":
            return el.viterbi(psi, T, real=REAL)
        if what == "k_best":
            return el.k_best_paths(psi, T, 3, real=REAL)
        if what == "marginals":
            return el.crf_marginals(psi, T, real=REAL)
        return (el.crf_entropy(psi, T, real=REAL),)

    psi, T = numbers(2, 4, 5, seed=0), numbers(5, 5, seed=1)
    for have, want in zip(torch.compile(run, fullgraph=True)(psi, T), run(psi, T), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-13)


def test_fusion_and_links_compile() -> None:
    present = torch.tensor([[True, False, False], [False, True, True]])
    words, entities = numbers(2, 3, 5, seed=0), numbers(2, 3, 7, seed=1)
    for layer in (el.ERNIEFusion(5, 7, 3).double(), el.GatedFusion(5, 7).double()):
        have = torch.compile(layer, fullgraph=True)(words, entities, present)
        torch.testing.assert_close(have, layer(words, entities, present))
    prior = numbers(2, 3, seed=2)

    def links(h: Tensor, e: Tensor) -> Tensor:
        return el.link_log_probs(h, e, log_prior=prior, nil=0.1)

    h, e = numbers(2, 5, seed=3), numbers(2, 3, 5, seed=4)
    torch.testing.assert_close(torch.compile(links, fullgraph=True)(h, e), links(h, e))
