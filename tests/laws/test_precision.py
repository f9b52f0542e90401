"""Reductions in half precision where squares or sums pass 65,504, the end of float16.

Each is compared with itself in float64 on the same numbers. Right is what float32 gives; an
intermediate in float16 would be infinite and the result inf, 0 or NaN.
"""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from .public import callables, numbers

FUNCTIONS = callables()
N, D = 7, 5
#: Entries of about 300: their squares pass 65,504, they themselves do not.
LARGE = 300 * (numbers(N, D).sign() + 0.1 * numbers(N, D, seed=1))
OTHER = 300 * (numbers(N, D, seed=2).sign() + 0.1 * numbers(N, D, seed=3))
ROW = LARGE[0]
IDS = torch.tensor([4, 0, 3, 1, 2, 2, 4])
# Many entries of order 100: sums of 4,000 of them pass 65,504.
MANY = 100 + numbers(4001).abs()
PROBABLE = torch.rand(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1

#: Calls of f with tensors that t makes of float64 ones.
CASES: dict[str, Callable[[Any, Callable[[Tensor], Tensor]], Any]] = {
    "alignment": lambda f, t: f(t(LARGE), t(OTHER)),
    "barlow_twins": lambda f, t: f(t(LARGE), t(OTHER)),
    "bits_per_byte": lambda f, t: f(t(-MANY), size=4001),
    "cbow_mean": lambda f, t: f(t(MANY.view(1, -1, 1))),
    "clip_by_global_norm": lambda f, t: f([t(LARGE), t(OTHER)], max_norm=1.0),
    "clip_grad_norm_": lambda f, t: clipped_in_place(f, t),
    "cbow_loss": lambda f, t: f(
        t(LARGE[:, None].repeat(1, 2, 1)), t(OTHER), t(LARGE[:, None].repeat(1, 3, 1))
    ),
    "cosine_similarity": lambda f, t: f(t(LARGE), t(OTHER)),
    "cosine_gradient": lambda f, t: f(t(LARGE), t(OTHER)) * 1e3,
    "cross_correlation": lambda f, t: f(t(LARGE), t(OTHER)),
    "cross_entropy": lambda f, t: f(t(100 * LARGE), IDS, reduction="sum"),
    "dropout_penalty": lambda f, t: f(t(LARGE), t(0.003 * ROW), p=0.5),
    "effective_rank": lambda f, t: f(t(LARGE)),
    "global_norm": lambda f, t: f([t(LARGE), t(OTHER)]),
    "glove_loss": lambda f, t: f(
        t(LARGE / 30), t(OTHER / 30), t(LARGE[:, 0]), t(LARGE[:, 1]), t(LARGE[:, 2].abs())
    ),
    "hierarchical_softmax_loss": lambda f, t: f(
        t(LARGE), t(OTHER[:, None].repeat(1, 3, 1)), torch.tensor([[1, -1, 0]] * N)
    ),
    "layer_norm_by_hand": lambda f, t: f(t(LARGE), t(ROW / 300)),
    "mean_cosine": lambda f, t: f(t(LARGE)),
    "mi_ba": lambda f, t: f(t(-MANY), entropy=150.0),
    "muon_update": lambda f, t: f(t(LARGE), t(OTHER), t(torch.zeros(N, D)), lr=0.1, momentum=0.0),
    "newton_schulz": lambda f, t: f(t(LARGE)),
    "nt_xent": lambda f, t: f(t(LARGE), t(OTHER), temperature=0.5),
    "perplexity": lambda f, t: f(t(-MANY / 50)),
    "pool": lambda f, t: f(t(MANY.view(1, -1, 1)), torch.ones(1, 4001, dtype=torch.bool)),
    "rademacher_bound": lambda f, t: f(t(LARGE), radius=1.0),
    "rank_residual": lambda f, t: f(t(LARGE)),
    "rms_norm_by_hand": lambda f, t: f(t(LARGE), t(ROW / 300)),
    "self_similarity": lambda f, t: f(t(LARGE), IDS, count=5)[[2, 4]],
    "sgns_loss": lambda f, t: f(t(LARGE), t(OTHER), t(LARGE[:, None].repeat(1, 3, 1))),
    "simsiam_loss": lambda f, t: f(t(LARGE), t(OTHER), t(OTHER), t(LARGE)),
    "skipgram_loss": lambda f, t: f(t(LARGE), t(OTHER), IDS),
    "spearman": lambda f, t: f(t(MANY), t(MANY.flip(0))),
    "spectral_contrastive": lambda f, t: f(t(LARGE), t(OTHER)),
    "token_diameter": lambda f, t: f(t(LARGE)),
    "uniformity": lambda f, t: f(t(LARGE / 300)),
    "vicreg": lambda f, t: f(t(LARGE), t(OTHER)),
    "z_loss": lambda f, t: f(t(LARGE)),
}


def clipped_in_place(f: Any, t: Callable[[Tensor], Tensor]) -> Any:
    params = [torch.nn.Parameter(t(torch.zeros(N, D))) for _ in range(2)]
    for param, grad in zip(params, (LARGE, OTHER), strict=True):
        param.grad = t(grad)
    return f(params, max_norm=1.0), [param.grad for param in params]


def flat(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value.detach()
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from flat(inner)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_reduction_in_half_precision_is_right_beyond_its_range(
    name: str, dtype: torch.dtype
) -> None:
    function = FUNCTIONS[name]
    ours = list(flat(CASES[name](function, lambda x: x.to(dtype))))
    # The same rounded numbers in float64: only the arithmetic differs.
    exact = list(flat(CASES[name](function, lambda x: x.to(dtype).double())))
    assert len(ours) == len(exact) > 0
    for mine, want in zip(ours, exact, strict=True):
        # A few roundings to the dtype on the way out, of numbers as large as the largest.
        allowed = 8 * torch.finfo(dtype).eps
        scale = float(want.abs().max())
        torch.testing.assert_close(mine.double(), want, rtol=allowed, atol=allowed * scale)
