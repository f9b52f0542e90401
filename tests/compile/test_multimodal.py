"""Losses, fusion and spectrograms compile to one graph, and the graph computes the same."""

import torch
from torch import Tensor

from companion.knowledge.multimodal import (
    clip_loss,
    late_fusion,
    log_mel,
    mixed_attention,
    modality_gap,
    patches,
    recall_at,
    siglip_loss,
)


def test_losses_and_fusion_compile() -> None:
    g = torch.Generator().manual_seed(0)
    U = torch.randn(11, 5, generator=g, dtype=torch.float64)
    V = torch.randn(11, 5, generator=g, dtype=torch.float64)

    def everything(U: Tensor, V: Tensor) -> list[Tensor]:
        log_p = (U @ V.T).log_softmax(1)
        targets = torch.arange(11)
        return [
            clip_loss(U, V, 0.5),
            siglip_loss(U, V, 0.5, -1.0),
            late_fusion([log_p, log_p.T.log_softmax(1)], log_p[0]),
            *mixed_attention(U, (V, V), (U[:7], V[:7])),
            modality_gap(U, V),
            recall_at(U @ V.T, targets, 3),
            patches(U.view(1, 1, 11, 5).tile(1, 3, 2, 2), 2),
        ]

    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(U, V), everything(U, V), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_spectrograms_compile() -> None:
    g = torch.Generator().manual_seed(0)
    waveform = torch.randn(2, 4801, generator=g, dtype=torch.float64)
    compiled = torch.compile(log_mel, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(waveform), log_mel(waveform), rtol=1e-12, atol=1e-12)
