"""Maps, norms, autoencoders and ranks compile to one graph, and the graph computes the same."""

import torch
from torch import Tensor

from companion.trust.interpretability import (
    SparseAutoencoder,
    Translator,
    kendall_tau,
    patching_effect,
    rationale_surrogate,
    rollout,
    value_norms,
)


def test_maps_and_features_compile() -> None:
    g = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 3, 5, 5, generator=g).softmax(-1)
    values = torch.randn(3, 5, 7, generator=g)
    output = torch.randn(3, 7, 11, generator=g)
    lens = Translator(11)
    sae = SparseAutoencoder(11, 13, k=3, generator=g)
    kept = torch.rand(5, 11, generator=g) > 0.5

    def everything(weights: Tensor, values: Tensor) -> list[Tensor]:
        R = rollout(weights)
        norms = value_norms(weights[-1], values, output)
        joined = value_norms(weights[-1], values, output, join=True)
        states = values.flatten()[:55].view(5, 11)
        made = sae(lens(states))
        told = rationale_surrogate(states, kept, states[:, 0])
        effect = patching_effect(states, states[0, 0], states[0, 1])
        return [R, norms, joined, made, told, effect, kendall_tau(R[0], R[1])]

    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        have, want = compiled(weights, values), everything(weights, values)
    for one, other in zip(have, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
