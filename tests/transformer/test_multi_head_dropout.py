"""Dropout of attention weights: the definition, its mean and variance, and when it acts."""

import math

import pytest
import torch
from torch import Tensor

from companion.core import watch
from companion.foundations.regularization import dropout_mask
from companion.transformer.attention import attention, attention_weights, causal, dense_attention
from companion.transformer.multi_head import MultiHeadAttention

B, H, N, M, K, V = 2, 3, 5, 7, 4, 6
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def inputs(g: torch.Generator, kv_heads: int = H) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((B, H, N, K), (B, kv_heads, M, K), (B, kv_heads, M, V))
    Q, K_, V_ = (torch.randn(s, generator=g, dtype=torch.float64) for s in shapes)
    return Q, K_, V_


def test_dropped_weights_are_zero_and_the_others_are_scaled_up(g: torch.Generator) -> None:
    Q, K_, V_ = inputs(g)
    mask = torch.rand(N, M, generator=g) > 0.3
    state = g.get_state()
    y = attention(Q, K_, V_, mask=mask, dropout=0.25, generator=g)
    g.set_state(state)
    kept = dropout_mask((B, H, N, M), p=0.25, generator=g)
    A = attention_weights(Q, K_, mask=mask)
    torch.testing.assert_close(y, (A * kept / 0.75) @ V_, **EXACT)
    g.set_state(state)
    z, held = dense_attention(Q, K_, V_, mask=mask, dropout=0.25, generator=g)
    torch.testing.assert_close(z, y, **EXACT)
    torch.testing.assert_close(held, A, **EXACT)  # before any are dropped


@pytest.mark.parametrize("kv_heads", [H, 1])
@pytest.mark.parametrize("queries", [N, 1])
@pytest.mark.parametrize("drawn", ["kernel", "dense"])
def test_every_path_keeps_the_mean_and_has_the_variance_of_the_definition(
    g: torch.Generator, kv_heads: int, queries: int, drawn: str
) -> None:
    r"""E y = A V, and Var y = p / (1 - p) \sum_j a_j^2 v_j^2, since weights drop independently."""
    Q, K_, V_ = inputs(g, kv_heads)
    Q, p, draws = Q[:, :, :queries], 0.25, 3000
    rows = [t.repeat(draws, 1, 1, 1) for t in (Q, K_, V_)]
    if drawn == "dense":
        y = attention(*rows, dropout=p, generator=g)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            y = attention(*rows, dropout=p)
    y = y.view(draws, B, H, queries, V)
    A, each = attention_weights(Q, K_), V_.expand(B, H, M, V)
    variance = p / (1 - p) * (A.square() @ each.square())
    z = (y.mean(0) - A @ each) / (variance / draws).sqrt()
    # At most 180 entries: a standard normal exceeds 5 once in 1.7 million.
    assert z.abs().max() < 5
    # A variance over n draws is known to sqrt((kurtosis - 1) / n), and the kurtosis of a sum of
    # seven shifted coins is below 6: 5 sqrt(5 / 3000) = 0.21.
    assert (y.var(0) / variance - 1).abs().max() < 5 * math.sqrt(5 / draws)


def test_what_cannot_drop_weights_says_so(g: torch.Generator) -> None:
    Q, K_, V_ = inputs(g)
    for options, message in (
        ({"dropout": 1.0}, r"dropout must lie in \[0.0, 1.0\), got 1.0"),
        ({"dropout": -0.1}, "dropout must lie in"),
        ({"dropout": 0.1, "backend": "tiled"}, "drop no weights: use 'sdpa' or 'dense'"),
        ({"dropout": 0.1, "backend": "flex"}, "drop no weights: use 'sdpa' or 'dense'"),
    ):
        with pytest.raises(ValueError, match=message):
            attention(Q, K_, V_, **options)
    blocks = causal().block_mask(Q.shape[-2], K_.shape[-2], device=Q.device)
    with pytest.raises(ValueError, match="drop no weights: use 'sdpa' or 'dense'"):
        attention(Q, K_, V_, mask=blocks, dropout=0.1)
    with pytest.raises(ValueError, match="dropout must lie in"):
        MultiHeadAttention(12, 3, dropout=1.0)


def test_a_layer_drops_in_training_alone_whichever_path_it_takes(g: torch.Generator) -> None:
    p, n = 0.25, 13
    plain = MultiHeadAttention(12, 3, bias=True, dtype=torch.float64)
    layer = MultiHeadAttention(12, 3, bias=True, dropout=p, dtype=torch.float64)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(11, n, 12, generator=g, dtype=torch.float64)
    expected = plain(x, mask=causal())
    torch.testing.assert_close(layer.eval()(x, mask=causal()), expected, **EXACT)
    assert layer.keep_heads([0, 2]).dropout == p
    layer.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        assert not torch.allclose(layer(x, mask=causal()), expected)
        names = ["weights", "values", "heads"]
        with watch(layer, read=names) as seen:
            layer(x, mask=causal())
    A, values, heads = (seen[name] for name in names)
    torch.testing.assert_close(A.sum(-1), torch.ones(11, 3, n, dtype=torch.float64), **EXACT)
    # The first token reads itself alone: all of its value, scaled up, or nothing.
    share = heads[:, :, 0] / values[:, :, 0]
    dropped = share.abs() < 1e-9
    torch.testing.assert_close(share[~dropped], torch.full_like(share[~dropped], 1 / (1 - p)))
    assert 0 < int(dropped[..., 0].sum()) < 33
