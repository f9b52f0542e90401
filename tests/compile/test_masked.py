"""A step of BERT's pre-training compiles to one graph, with a fixed number of predictions."""

from typing import Any

import pytest
import torch
from torch import Tensor

from companion.core import generator
from companion.pretraining.masked import BertForPreTraining, corrupt
from companion.pretraining.masked._model import select_places
from companion.transformer.block import Learned, TransformerConfig

CONFIG = TransformerConfig(
    vocab=31,
    dim=12,
    layers=1,
    heads=3,
    ff_dim=17,
    context=19,
    norm_place="post",
    positions=Learned(),
    embedding_norm=True,
    segments=2,
)
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def batch_of(seed: int) -> dict[str, Tensor]:
    g = generator(seed)
    ids = torch.randint(4, 31, (3, 11), generator=g)
    read = corrupt(ids, vocab=31, mask_id=3, ratio=0.3, generator=g)
    return {
        "ids": read.ids,
        "targets": read.targets,
        "labels": torch.randint(0, 2, (3,), generator=g),
        "segments": (torch.arange(11) > 5).long().expand(3, 11),
    }


def test_one_graph_serves_every_number_of_blanks() -> None:
    torch._dynamo.reset()
    model: Any = BertForPreTraining(CONFIG).double()

    def step(**b: Tensor) -> Tensor:
        loss: Tensor = model.loss(**b, predictions=17).total
        return loss

    fast = torch.compile(step, fullgraph=True)
    counts = set()
    for seed in range(3):
        b = batch_of(seed)
        counts.add(int((b["targets"] >= 0).sum()))
        expected = step(**b)
        gradients = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
        with torch.compiler.set_stance("fail_on_recompile" if seed else "default"):
            made = fast(**b)
            torch.testing.assert_close(made, expected, **CLOSE)
            for mine, wanted in zip(
                torch.autograd.grad(made, list(model.parameters()), allow_unused=True),
                gradients,
                strict=True,
            ):
                torch.testing.assert_close(mine, wanted, **CLOSE)
    assert len(counts) > 1


def test_without_a_number_all_positions_are_predicted() -> None:
    torch._dynamo.reset()
    model: Any = BertForPreTraining(CONFIG).double()
    b = batch_of(0)
    fast = torch.compile(lambda **b: model.loss(**b).total, fullgraph=True)
    torch.testing.assert_close(fast(**b), model.loss(**b).total, **CLOSE)


@pytest.mark.inductor
def test_both_heads_compile() -> None:
    torch._dynamo.reset()
    model: Any = BertForPreTraining(CONFIG).double()
    ids = batch_of(0)["ids"]
    made, expected = torch.compile(model, fullgraph=True)(ids), model(ids)
    torch.testing.assert_close(made.tokens, expected.tokens, **CLOSE)
    torch.testing.assert_close(made.pair, expected.pair, **CLOSE)


def test_places_compile() -> None:
    torch._dynamo.reset()
    targets = batch_of(0)["targets"]
    made = torch.compile(select_places, fullgraph=True)(targets, 7)
    for mine, wanted in zip(made, select_places(targets, 7), strict=True):
        assert torch.equal(mine, wanted)
