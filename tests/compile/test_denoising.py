"""The models of this chapter, and what is not random of the noises, compile to one graph."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from companion.pretraining.denoising import (
    Batch,
    Tokens,
    TwoStream,
    UnifiedLM,
    causal_batch,
    enclose,
    joined_batch,
    pad_rows,
    rank_masks,
    reach,
    shift_right,
    split_spans,
    target_labels,
)
from companion.transformer.block import Learned, NoPositions, TransformerConfig, initialize_

CLOSE = {"rtol": 1e-11, "atol": 1e-12}
SIZES: dict[str, Any] = {"vocab": 31, "dim": 12, "layers": 2, "heads": 3, "ff_dim": 17}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # One graph, forward and backward; the kernels that Inductor would write are not the subject.
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def gradients(loss: Tensor, model: torch.nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


@pytest.fixture
def tokens(g: torch.Generator) -> Tokens:
    return pad_rows([torch.randint(3, 31, (n,), generator=g).tolist() for n in (11, 7)])


@pytest.mark.parametrize("kind", ["causal", "joined"])
def test_the_unified_model_trains_compiled(kind: str, tokens: Tokens, g: torch.Generator) -> None:
    config = TransformerConfig(**SIZES, context=40, positions=Learned(), segments=2)
    model = initialize_(UnifiedLM(config), generator=g, std=0.3).double()
    spans = torch.tensor([[0, 1, 1, 0, 1, 0, 0] + [0] * 4] * 2).bool()
    batch = (
        causal_batch(tokens)
        if kind == "causal"
        else joined_batch(split_spans(tokens, spans, sentinel=30), start=1)
    )

    def loss(ids: Tensor, real: Tensor, labels: Tensor) -> Tensor:
        return model.loss(Batch(**{**vars(batch), "ids": ids, "real": real, "labels": labels}))

    given = (batch.ids, batch.real, batch.labels)
    one, two = loss(*given), compiled(loss)(*given)
    torch.testing.assert_close(two, one, **CLOSE)
    ids = [p for p in model.parameters() if p is not model.encoder.segments]
    assert ids
    for a, b in zip(
        torch.autograd.grad(one, ids, allow_unused=True),
        torch.autograd.grad(two, ids, allow_unused=True),
        strict=True,
    ):
        if a is not None:
            torch.testing.assert_close(b, a, **CLOSE)


def test_the_two_stream_model_trains_compiled(tokens: Tokens, g: torch.Generator) -> None:
    config = TransformerConfig(
        **SIZES, context=40, norm_place="post", positions=NoPositions(), segments=2
    )
    model = initialize_(TwoStream(config), generator=g, std=0.3).double()
    rank = torch.full((2, 11), -1)
    predict = torch.tensor([[1, 3, 8], [0, 5, 2]])
    rank = rank.scatter(1, predict, torch.tensor([[0, 1, 2], [2, 0, 1]]))
    segments = (torch.arange(11) > 4).long().expand(2, 11)

    def loss(ids: Tensor, rank: Tensor, predict: Tensor) -> Tensor:
        allowed = rank_masks(rank).query
        return model.loss(ids, predict, allowed=allowed, real=tokens.real, segments=segments)

    given = (tokens.ids, rank, predict)
    one, two = loss(*given), compiled(loss)(*given)
    torch.testing.assert_close(two, one, **CLOSE)
    for a, b in zip(gradients(one, model), gradients(two, model), strict=True):
        torch.testing.assert_close(b, a, **CLOSE)


def test_what_is_not_random_of_the_noises_compiles(tokens: Tokens) -> None:
    spans = torch.tensor([[0, 1, 1, 0, 1, 0, 0] + [0] * 4] * 2).bool()

    def parts(ids: Tensor, real: Tensor) -> tuple[Tensor, ...]:
        given = Tokens(ids, real)
        pair = split_spans(given, spans, sentinel=30, end=1, closing=True)
        more = enclose(pair.source, start=2, end=1)
        return (
            *pair.source,
            *pair.target,
            *more,
            shift_right(pair.target, start=1),
            target_labels(pair.target),
        )

    for a, b in zip(compiled(parts)(*tokens), parts(*tokens), strict=True):
        assert torch.equal(a, b)


def test_reach_compiles(g: torch.Generator) -> None:
    allowed = torch.rand(5, 5, generator=g) < 0.3
    assert torch.equal(compiled(lambda x: reach(x, layers=3))(allowed), reach(allowed, layers=3))
