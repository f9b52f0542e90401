"""Low rank, blocks of low rank, Monarch, shared layers, and narrow tables."""

import copy

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertModel

from companion.core import randn, replace_linears
from companion.efficiency.sparsity import (
    BlockLowRankLinear,
    FactorizedEmbedding,
    LowRankLinear,
    MonarchLinear,
    SharedEncoder,
    activation_aware_factors,
    block_mask,
    break_even_rank,
    parameter_uses,
    share_blocks_,
    svd_factors,
)
from companion.transformer.block import Decoder, Encoder, Learned, Rope, TransformerConfig


def g(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return randn(*shape, generator=g(seed), dtype=torch.float64)


def test_the_error_of_the_best_low_rank_is_the_tail_of_the_spectrum() -> None:
    W = numbers(7, 11)
    values = scipy.linalg.svdvals(W.numpy())
    for rank in (1, 3, 7):
        A, B = svd_factors(W, rank=rank)
        error = float(((W - A @ B) ** 2).sum())
        np.testing.assert_allclose(error, (values[rank:] ** 2).sum(), atol=1e-12)
    A, B = svd_factors(W, rank=3)
    for seed in range(5):  # nothing near it is better
        other = (A + 0.01 * numbers(7, 3, seed=seed)) @ (B + 0.01 * numbers(3, 11, seed=seed))
        assert ((W - other) ** 2).sum() > ((W - A @ B) ** 2).sum()
    with pytest.raises(ValueError, match="rank must be from 1 to 7, got 8"):
        svd_factors(W, rank=8)


def test_factors_pay_up_to_the_break_even_rank() -> None:
    assert break_even_rank(512, 1000) == 338
    assert 400 * 1512 == 604_800 > 512_000 >= 338 * 1512
    for d_in, d_out in ((7, 11), (3, 3), (1, 5)):
        r = break_even_rank(d_in, d_out)
        assert r * (d_in + d_out) <= d_in * d_out < (r + 1) * (d_in + d_out)


def test_factors_that_know_the_inputs_change_the_outputs_least() -> None:
    X = numbers(41, 7, seed=1) @ torch.diag(torch.arange(1.0, 8.0).double() ** 2)
    W, H = numbers(7, 11), 2 * X.T @ X
    plain, aware = svd_factors(W, rank=2), activation_aware_factors(W, H, rank=2, damping=0.0)
    errors = [float(((X @ (W - A @ B)) ** 2).sum()) for A, B in (plain, aware)]
    tail = torch.linalg.svdvals(X @ W)[2:].square().sum()
    np.testing.assert_allclose(errors[1], float(tail), rtol=1e-9)
    assert errors[1] < 0.9 * errors[0]
    # The Gram matrix is that over inputs: rotated ones have rotated factors.
    Q = torch.linalg.qr(numbers(7, 7, seed=2)).Q
    A, B = activation_aware_factors(Q.T @ W, Q.T @ H @ Q, rank=2, damping=0.0)
    torch.testing.assert_close(Q @ A @ B, aware[0] @ aware[1])
    with pytest.raises(ValueError, match="not positive definite"):
        activation_aware_factors(W, H - 1e9 * torch.eye(7).double(), rank=2)
    with pytest.raises(ValueError, match="damping must lie in"):
        activation_aware_factors(W, H, rank=2, damping=-0.1)


def test_a_low_rank_layer_stands_in_a_model() -> None:
    config = TransformerConfig(vocab=13, dim=12, layers=2, heads=3, ff_dim=20, context=17)
    model = Decoder(config).double()
    ids = torch.arange(5)[None]
    before = model(ids)

    def make(linear: nn.Module, place: object) -> nn.Module:
        assert isinstance(linear, nn.Linear)
        A, B = svd_factors(linear.weight.detach().T, rank=min(linear.weight.shape))
        return LowRankLinear(A, B, linear.bias)

    replace_linears(model, ["down", "query"], make)
    torch.testing.assert_close(model(ids), before)
    layer = model.blocks[0].feed_forward.down
    assert isinstance(layer, LowRankLinear)
    assert layer.weight.shape == (12, 20)


def test_a_block_low_rank_matrix_is_what_its_blocks_say_and_may_have_full_rank() -> None:
    layer = BlockLowRankLinear(6, 9, blocks=3, rank=1, generator=g(), dtype=torch.float64)
    x = numbers(5, 6)
    W = torch.cat(
        [torch.cat([layer.U[i, j] @ layer.V[i, j] for j in range(3)], 1) for i in range(3)], 0
    )
    torch.testing.assert_close(layer(x), x @ W)
    torch.testing.assert_close(layer.weight, W.T)
    assert sum(p.numel() for p in layer.parameters()) == 3 * 1 * (6 + 9)
    assert int(torch.linalg.matrix_rank(W.detach())) == 6  # nine blocks of rank 1, at most d
    assert (W != 0).all()  # no block is missing
    target = numbers(6, 9, seed=3)
    best = BlockLowRankLinear.of(target, blocks=3, rank=1)
    tiles = (target - best.weight.T).unflatten(0, (3, 2)).unflatten(2, (3, 3)).transpose(1, 2)
    values = torch.linalg.svdvals(target.unflatten(0, (3, 2)).unflatten(2, (3, 3)).transpose(1, 2))
    torch.testing.assert_close(tiles.square().sum((2, 3)), values[..., 1:].square().sum(-1))
    full = BlockLowRankLinear.of(target, blocks=3, rank=2)
    torch.testing.assert_close(full.weight.T, target)
    with pytest.raises(ValueError, match="multiples of 4 blocks"):
        BlockLowRankLinear(6, 9, blocks=4, rank=1, generator=g())


def test_block_sparse_and_block_low_rank_are_different_sets() -> None:
    diagonal = torch.block_diag(*[numbers(3, 3, seed=s) for s in range(3)])
    assert torch.equal(diagonal * block_mask(diagonal, sparsity=2 / 3, block=3), diagonal)
    low = BlockLowRankLinear.of(diagonal, blocks=3, rank=1)  # as many numbers: 54 against 27
    assert not torch.allclose(low.weight.T, diagonal)
    outer = numbers(9, 1) @ numbers(1, 9, seed=1)
    torch.testing.assert_close(BlockLowRankLinear.of(outer, blocks=3, rank=1).weight.T, outer)
    assert not torch.allclose(outer * block_mask(outer, sparsity=2 / 3, block=3), outer)


def test_a_monarch_matrix_is_block_diagonal_twice_and_reaches_everything() -> None:
    layer = MonarchLinear(9, generator=g(), dtype=torch.float64)
    P = torch.eye(9).double()[torch.arange(9).view(3, 3).T.flatten()]
    R, L = torch.block_diag(*layer.R), torch.block_diag(*layer.L)
    torch.testing.assert_close(layer.weight.T, R @ P @ L @ P.T)
    x = numbers(2, 5, 9)
    torch.testing.assert_close(layer(x), x @ layer.weight.T)
    assert (layer.weight != 0).all()
    assert sum(p.numel() for p in layer.parameters()) == 2 * 9 * 3
    with pytest.raises(ValueError, match="square number, got 8"):
        MonarchLinear(8, generator=g())


def test_layers_with_structure_have_shapes_without_values() -> None:
    for layer, d_out in (
        (BlockLowRankLinear(6, 9, blocks=3, rank=1, generator=g()), 9),
        (MonarchLinear(9, generator=g()), 9),
        (LowRankLinear(torch.ones(6, 2), torch.ones(2, 5), torch.ones(5)), 5),
    ):
        d_in = layer.weight.shape[1]
        assert layer.to("meta")(torch.empty(7, d_in, device="meta")).shape == (7, d_out)


def test_the_gradient_of_a_shared_parameter_is_the_sum_over_its_places() -> None:
    config = TransformerConfig(
        vocab=13, dim=12, layers=4, heads=3, ff_dim=20, context=17, positions=Rope()
    )
    with torch.random.fork_rng(devices=[]):
        shared = share_blocks_(Decoder(config).double(), groups=2)
    separate = copy.deepcopy(shared)
    separate.blocks = nn.ModuleList(copy.deepcopy(block) for block in shared.blocks)
    ids = torch.arange(7)[None]
    torch.testing.assert_close(shared(ids), separate(ids))
    for model in (shared, separate):
        model(ids).square().sum().backward()
    for first in (0, 2):
        together = dict(shared.blocks[first].named_parameters())
        apart = [dict(separate.blocks[i].named_parameters()) for i in (first, first + 1)]
        for name, p in together.items():
            parts = [each[name].grad for each in apart]
            torch.testing.assert_close(p.grad, parts[0] + parts[1])
            assert not torch.allclose(parts[0], parts[1])
    counted, whole = parameter_uses(shared), parameter_uses(separate)
    assert counted.used == whole.used
    assert counted.stored < whole.stored
    assert len({id(block) for block in shared.blocks}) == 2
    with pytest.raises(ValueError, match="groups must divide the 4 layers, got 3"):
        share_blocks_(Decoder(config), groups=3)
    with pytest.raises(ValueError, match="no blocks to share"):
        share_blocks_(nn.Linear(2, 3))


def test_a_tied_table_has_the_gradient_of_both_its_uses_and_is_stored_once() -> None:
    config = TransformerConfig(
        vocab=13, dim=12, layers=1, heads=3, ff_dim=20, context=17, tied=True, positions=Rope()
    )
    tied = Decoder(config).double()
    loose = copy.deepcopy(tied)
    loose.untie()
    ids = torch.arange(7)[None]
    for model in (tied, loose):
        model(ids).square().mean().backward()
    torch.testing.assert_close(
        tied.tokens.weight.grad, loose.tokens.weight.grad + loose.head.weight.grad
    )
    assert parameter_uses(loose).stored - parameter_uses(tied).stored == 13 * 12
    assert parameter_uses(loose).used == parameter_uses(tied).used


def test_a_factorized_table_is_the_product_and_far_smaller() -> None:
    table = FactorizedEmbedding(13, 3, 11)
    ids = torch.tensor([[0, 5, 12]])
    torch.testing.assert_close(table(ids), table.weight[ids])
    assert parameter_uses(FactorizedEmbedding(30_000, 128, 768)).stored == 3_938_304
    assert 30_000 * 768 == 23_040_000
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 13\), got 13"):
        table(torch.tensor([13]))


def albert(groups: int) -> tuple[AlbertModel, SharedEncoder]:
    theirs = AlbertModel(
        AlbertConfig(
            vocab_size=31, embedding_size=5, hidden_size=12, num_hidden_layers=4,
            num_hidden_groups=groups, num_attention_heads=3, intermediate_size=19,
            hidden_act="gelu_new", max_position_embeddings=17, type_vocab_size=2,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, layer_norm_eps=1e-12,
        ),
        add_pooling_layer=False,
    ).double().eval()  # fmt: skip
    config = TransformerConfig(
        vocab=31, dim=12, layers=4, heads=3, ff_dim=19, context=17, norm_place="post",
        norm_eps=1e-12, activation="gelu_tanh", positions=Learned(), segments=2,
        attention_bias=True, ff_bias=True,
    )  # fmt: skip
    ours = SharedEncoder(config, narrow=5, groups=groups).double().eval()
    state = {
        "tokens.weight": theirs.embeddings.word_embeddings.weight,
        "places.weight": theirs.embeddings.position_embeddings.weight,
        "segments.weight": theirs.embeddings.token_type_embeddings.weight,
    }
    for mine, name in (("norm", "embeddings.LayerNorm"),):
        part = theirs.get_submodule(name)
        state |= {f"{mine}.weight": part.weight, f"{mine}.bias": part.bias}
    up = theirs.encoder.embedding_hidden_mapping_in
    state |= {"up.weight": up.weight, "up.bias": up.bias}
    for layer in range(4):
        part = theirs.encoder.albert_layer_groups[layer * groups // 4].albert_layers[0]
        to = f"encoder.blocks.{layer}."
        attention = part.attention
        for kind in ("weight", "bias"):
            qkv = [getattr(m, kind) for m in (attention.query, attention.key, attention.value)]
            state |= {
                f"{to}attention.qkv.{kind}": torch.cat(qkv),
                f"{to}attention.out.{kind}": getattr(attention.dense, kind),
                f"{to}attention_norm.{kind}": getattr(attention.LayerNorm, kind),
                f"{to}feed_forward.up.{kind}": getattr(part.ffn, kind),
                f"{to}feed_forward.down.{kind}": getattr(part.ffn_output, kind),
                f"{to}feed_forward_norm.{kind}": getattr(part.full_layer_layer_norm, kind),
            }
    ours.load_state_dict(state)
    return theirs, ours


@pytest.mark.parametrize("groups", [1, 2])
def test_the_shared_encoder_is_albert(groups: int) -> None:
    theirs, ours = albert(groups)
    ids = torch.randint(0, 31, (3, 11), generator=g())
    real = torch.arange(11) < torch.tensor([[11], [7], [4]])
    segments = (torch.arange(11) > 4).long().expand(3, -1)
    with torch.no_grad():
        want = theirs(ids, attention_mask=real.long(), token_type_ids=segments).last_hidden_state
        got = ours(ids, real=real, segments=segments)
    torch.testing.assert_close(got[real], want[real])
    assert parameter_uses(ours).stored == sum(p.numel() for p in theirs.parameters())
    # Padding does not count, and length 4 alone gives the same.
    torch.testing.assert_close(ours(ids[2:, :4], segments=segments[2:, :4])[0], got[2, :4])


def test_the_shared_encoder_refuses_what_it_cannot_do() -> None:
    config = TransformerConfig(
        vocab=7, dim=12, layers=2, heads=3, ff_dim=5, context=4, positions=Learned()
    )
    model = SharedEncoder(config, narrow=5)
    with pytest.raises(ValueError, match="no segments"):
        model(torch.tensor([[1, 2]]), segments=torch.tensor([[0, 0]]))
    with pytest.raises(ValueError, match="tokens of each sequence must be from 1 to 4, got 5"):
        model(torch.ones(1, 5).long())
    with pytest.raises(ValueError, match="positions must be"):
        SharedEncoder(
            TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=5, context=4), narrow=5
        )
    assert isinstance(model.encoder, Encoder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_factors_of_half_precision_are_those_of_the_same_numbers(dtype: torch.dtype) -> None:
    W = numbers(6, 10).to(dtype)
    A, B = svd_factors(W, rank=4)
    assert A.dtype == B.dtype == dtype
    want = torch.mm(*svd_factors(W.double(), rank=4))
    # Entries of A and B are rounded, relative eps/2 each, in sums of 4 products.
    slack = 4 * torch.finfo(dtype).eps * float(A.abs().max() * B.abs().max())
    assert float((A.double() @ B.double() - want).abs().max()) < slack
    layer = BlockLowRankLinear.of(W, blocks=2, rank=3)
    assert layer.U.dtype == dtype
    assert float((layer.weight.detach().T.double() - W.double()).abs().max()) < 0.2
