"""The update rules and the Newton-Schulz iteration compile to one graph each."""

import pytest
import torch

from companion.core import generator, randn
from companion.foundations import optimization as opt

RULES = [
    (opt.sgd_update, 0, {}),
    (opt.momentum_update, 1, {}),
    (opt.nesterov_update, 1, {}),
    (opt.adagrad_update, 1, {}),
    (opt.rmsprop_update, 1, {}),
    (opt.adam_update, 2, {"step": 3}),
    (opt.adamw_update, 2, {"step": 3}),
    (opt.lion_update, 1, {}),
    (opt.muon_update, 1, {}),
]


@pytest.mark.parametrize(("rule", "slots", "extra"), RULES, ids=[r[0].__name__ for r in RULES])
def test_a_compiled_update_equals_the_eager_one(rule, slots, extra):
    g = generator(0)
    tensors = [randn(7, 5, generator=g, dtype=torch.float64).abs() + 0.1 for _ in range(2 + slots)]
    compiled = torch.compile(rule, fullgraph=True)
    eager = rule(*tensors, lr=0.1, weight_decay=0.2, **extra)
    for one, other in zip(
        compiled(*tensors, lr=0.1, weight_decay=0.2, **extra), eager, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.inductor
def test_clipping_compiles():
    g = generator(0)
    grads = [randn(*shape, generator=g, dtype=torch.float64) for shape in ((5, 3), (7,))]
    compiled = torch.compile(opt.clip_by_global_norm, fullgraph=True)
    clipped, norm = compiled(grads, max_norm=0.5)
    expected, reference = opt.clip_by_global_norm(grads, max_norm=0.5)
    torch.testing.assert_close(norm, reference)
    torch.testing.assert_close(clipped, expected)
