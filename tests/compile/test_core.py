"""The training loop takes a compiled loss."""

import torch

from companion.core import generator, randn, train


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
