"""The training loop takes a compiled loss, and models whose blocks are compiled."""

import pytest
import torch
from torch import Tensor, nn

from companion.core import (
    HasSites,
    LossModule,
    generator,
    parallelize,
    randint,
    randn,
    train,
    watch,
)
from companion.pretraining.autoregressive import next_token_loss
from companion.transformer.block import Decoder, TransformerConfig, initialize_


def test_a_compiled_loss_trains_like_an_eager_one():
    inputs = randn(31, 5, generator=generator(0))

    def run(compiled):
        weight = torch.nn.Parameter(torch.zeros(5))

        def loss_fn(batch):
            return ((batch @ weight - 1.0) ** 2).mean()

        if compiled:
            loss_fn = torch.compile(loss_fn, fullgraph=True)
        return train(loss_fn, [inputs], torch.optim.SGD([weight], lr=0.1), steps=5).loss

    torch.testing.assert_close(run(True), run(False), rtol=1e-5, atol=1e-6)


@pytest.mark.inductor
# Dynamo looks at .grad of a block's input and hides the warning; but here warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_blocks_train_like_eager_ones():
    config = TransformerConfig(vocab=23, dim=12, layers=2, heads=3, ff_dim=29, context=7)
    ids = randint(0, 23, (5, 8), generator=generator(1))

    def run(**how):
        model = initialize_(Decoder(config), generator=generator(0))
        module = parallelize(LossModule(model, next_token_loss), **how)
        adam = torch.optim.AdamW(module.parameters(), lr=0.01)
        return train(module, [ids], adam, steps=4).loss

    both = run(compile=True, activation_checkpointing=True)
    torch.testing.assert_close(both, run(), rtol=1e-5, atol=1e-5)


class Doubled(HasSites):
    """2 x + 1, with a site between."""

    sites = ("product",)

    def forward(self, x: Tensor) -> Tensor:
        return self.site("product", 2 * x) + 1


def test_a_compiled_model_is_compiled_anew_when_it_is_watched() -> None:
    torch._dynamo.reset()
    model, x = nn.Sequential(Doubled(), Doubled()), torch.arange(5.0)
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(fast(x), 4 * x + 3)
    with watch(fast, read=["0.product"], replace={"0.product": lambda z: -z}) as seen:
        assert torch.equal(fast(x), -4 * x + 3)
    assert torch.equal(seen["0.product"], -2 * x)
    assert torch.equal(fast(x), 4 * x + 3)
