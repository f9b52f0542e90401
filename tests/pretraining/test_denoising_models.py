"""Masks and models: what can influence what, and that one pass is the chain rule."""

import math
from itertools import combinations, permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.core import site_names, watch
from companion.pretraining.denoising import (
    Batch,
    Pair,
    Tokens,
    TwoStream,
    TwoStreamAttention,
    UnifiedLM,
    causal_batch,
    enclose,
    glm_batch,
    influence,
    joined_batch,
    masked_batch,
    order_ranks,
    pad_rows,
    prefix_batch,
    random_ranks,
    random_spans,
    rank_masks,
    reach,
    reversed_batch,
    right_to_left,
    seq2seq_loss,
    span_corruption,
)
from companion.transformer.attention import (
    Mask,
    attention,
    causal,
    everything,
    prefix,
    sliding_window,
)
from companion.transformer.block import (
    EncoderDecoder,
    Learned,
    NoPositions,
    TransformerConfig,
    initialize_,
)
from companion.transformer.positions import TransformerXLBias

V, N = 31, 7
SIZES: dict[str, Any] = {"vocab": V, "dim": 12, "layers": 2, "heads": 3, "ff_dim": 17}


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unified(**changes: Any) -> UnifiedLM:
    config = TransformerConfig(**{**SIZES, **changes}, context=40, positions=Learned(), segments=11)
    return initialize_(UnifiedLM(config), generator=gen(1), std=0.4, branch_gain=1.0).double()


def two_stream(**changes: Any) -> TwoStream:
    config = TransformerConfig(
        **{"segments": 2, **SIZES, **changes},
        context=40,
        norm_place="post",
        positions=NoPositions(),
    )
    return initialize_(TwoStream(config), generator=gen(1), std=0.4, branch_gain=1.0).double()


def texts(*lengths: int) -> Tokens:
    g = gen(9)
    return pad_rows([torch.randint(3, V, (n,), generator=g).tolist() for n in lengths])


# --- which inputs reach which outputs ----------------------------------------------------------

UNILM = {
    "bidirectional": everything(),
    "left to right": causal(),
    "right to left": right_to_left(),
    "sequence to sequence": prefix(3),
}


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", UNILM)
def test_the_jacobian_of_any_depth_has_the_pattern_of_unilms_masks(name: str, layers: int) -> None:
    model = unified(layers=layers)
    x = torch.randn(N, 12, generator=gen(), dtype=torch.float64)
    seen = influence(lambda x: model.encoder(None, embeddings=x[None], mask=UNILM[name])[0], x)
    allowed = UNILM[name].dense(N, N)[0, 0].expand(N, N)
    assert torch.equal(seen, allowed)
    assert torch.equal(reach(allowed, layers=layers), allowed)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_mask_that_is_not_transitive_reaches_further_with_depth(layers: int) -> None:
    model = unified(layers=layers)
    x = torch.randn(N, 12, generator=gen(), dtype=torch.float64)
    window = sliding_window(2)
    seen = influence(lambda x: model.encoder(None, embeddings=x[None], mask=window)[0], x)
    assert torch.equal(seen, reach(window.dense(N, N)[0, 0], layers=layers))
    assert torch.equal(seen, sliding_window(layers + 1).dense(N, N)[0, 0])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 6), layers=st.integers(0, 4))
def test_reach_is_the_set_of_paths(seed: int, n: int, layers: int) -> None:
    allowed = torch.rand(n, n, generator=gen(seed)) < 0.3
    seen = [{i} for i in range(n)]
    for _ in range(layers):
        seen = [s | {j for k in s for j in range(n) if allowed[k, j]} for s in seen]
    table = torch.tensor([[j in s for j in range(n)] for s in seen])
    assert torch.equal(reach(allowed, layers=layers), table)


RANKS = torch.tensor([[2, -1, 0, 4, 1, -1, 3]])


@pytest.mark.parametrize("layers", [1, 3])
def test_the_two_streams_depend_on_what_their_masks_allow(layers: int) -> None:
    model = two_stream(layers=layers)
    x = torch.randn(N, 12, generator=gen(), dtype=torch.float64)
    masks = rank_masks(RANKS)
    for predict, mask in ((None, masks.content), (torch.arange(N)[None], masks.query)):

        def stream(x: Tensor, predict: Tensor | None = predict) -> Tensor:
            return model.hidden(None, predict, allowed=masks.query, embeddings=x[None])[0]

        assert torch.equal(influence(stream, x), mask.dense(N, N)[0, 0])
    assert not bool(masks.query.dense(N, N)[0, 0].diagonal()[RANKS[0] >= 0].any())


def test_given_embeddings_stand_for_the_tokens() -> None:
    model = two_stream()
    ids = torch.randint(0, V, (2, N), generator=gen())
    given = model.tokens.weight[ids]
    torch.testing.assert_close(model.hidden(None, embeddings=given), model.hidden(ids))
    torch.testing.assert_close(model.hidden(ids.to(torch.uint8)), model.hidden(ids))
    with pytest.raises(ValueError, match="one of the two"):
        model.hidden(ids, embeddings=given)


def test_a_mask_that_only_hides_oneself_leaks_at_once_or_in_two_layers() -> None:
    away = Mask(lambda b, h, i, j: i != j)
    x = torch.randn(N, 12, generator=gen(), dtype=torch.float64)
    # In a plain stack the residual stream brings each token to its own output in one layer.
    model = unified(layers=1)
    assert bool(influence(lambda x: model.encoder(None, embeddings=x[None], mask=away)[0], x).all())
    # Without it, and with queries that know no token, one layer is safe and two are not. An order
    # is safe at any depth.
    queries = torch.randn(1, 1, N, 12, generator=gen(1), dtype=torch.float64)

    def stack(x: Tensor, layers: int, mask: Mask) -> Tensor:
        h = x[None, None]
        for _ in range(layers):
            h = attention(queries, h, h, mask=mask)
        return h[0, 0]

    eye = torch.eye(N, dtype=torch.bool)
    assert torch.equal(influence(lambda x: stack(x, 1, away), x), ~eye)
    assert bool(influence(lambda x: stack(x, 2, away), x).all())
    order = rank_masks(torch.arange(N)[None]).query
    assert not bool((influence(lambda x: stack(x, 2, order), x) & eye).any())


def test_rank_masks_by_hand() -> None:
    rank = torch.tensor([[2, 0, 1], [-1, 0, 0]])
    masks = rank_masks(rank)
    # x2, then x3, then x1; and x1 given, the others predicted apart.
    query = [[[0, 1, 1], [0, 0, 0], [0, 1, 0]], [[1, 0, 0], [1, 0, 0], [1, 0, 0]]]
    assert torch.equal(masks.query.dense(3, 3)[:, 0], torch.tensor(query).bool())
    own = torch.eye(3, dtype=torch.bool)
    assert torch.equal(masks.content.dense(3, 3), masks.query.dense(3, 3) | own)


def test_ranks_0_1_2_are_a_causal_model_and_constant_ranks_see_nothing() -> None:
    rank = torch.arange(N)[None]
    assert torch.equal(rank_masks(rank).content.dense(N, N)[0, 0], causal().dense(N, N)[0, 0])
    assert not bool(rank_masks(torch.zeros_like(rank)).query.dense(N, N).any())
    given = rank_masks(torch.full_like(rank, -1))
    assert bool(given.query.dense(N, N).all())


@given(st.permutations(list(range(N))))
def test_ranks_are_inverse_permutations(order: list[int]) -> None:
    rank = order_ranks(torch.tensor([order]))[0]
    assert [int(rank[place]) for place in order] == list(range(N))


def test_partial_prediction_takes_the_share_and_every_order() -> None:
    real = torch.arange(6) < torch.tensor([[6], [4], [0]])
    rank, where = random_ranks(real, ratio=0.5, generator=gen())
    assert [sorted(r[r >= 0].tolist()) for r in rank] == [[0, 1, 2], [0, 1], []]
    assert where.shape == (3, 3)
    picked = rank.gather(1, where)
    assert [int((p >= 0).sum()) for p in picked] == [3, 2, 0]
    assert bool((where[0].diff() > 0).all())
    rank, _ = random_ranks(torch.ones(12000, 4, dtype=torch.bool), ratio=0.5, generator=gen())
    seen = torch.unique(rank, dim=0, return_counts=True)[1]
    assert len(seen) == 12  # 6 subsets in 2 orders
    assert float((seen - 1000).abs().max()) < 5 * math.sqrt(12000 * (1 / 12) * (11 / 12))


# --- one pass is the chain rule ------------------------------------------------------------------


def token_by_token(model: UnifiedLM, pair: Pair, start: int) -> Tensor:
    """The probability of a target, computed again from the start for each of its tokens."""
    source, target = pair
    (written,) = target.ids.tolist()
    total = torch.zeros((), dtype=torch.float64)
    for t, token in enumerate(written):
        short = Pair(source, pad_rows([[*written[:t], token]]))
        batch = joined_batch(short, start=start)
        total = total + model(batch)[0, t].log_softmax(-1)[token]
    return total


def test_a_joined_batch_is_the_chain_rule_under_the_prefix_mask() -> None:
    model = unified()
    pair = Pair(texts(5), texts(4))
    loss = model.loss(joined_batch(pair, start=1))
    torch.testing.assert_close(-4 * loss, token_by_token(model, pair, 1))


def test_a_joined_batch_by_hand() -> None:
    pair = Pair(pad_rows([[10, 11, 12], [13]]), pad_rows([[20, 21], [22]]))
    batch = joined_batch(pair, start=1)
    assert batch.ids.tolist() == [[10, 11, 12, 1, 20], [13, 0, 0, 1, 22]]
    assert batch.real.int().tolist() == [[1, 1, 1, 1, 1], [1, 0, 0, 1, 0]]
    assert batch.labels.tolist() == [[20, 21], [22, -100]]
    assert batch.predict is not None
    assert batch.positions is not None
    assert batch.segments is not None
    assert batch.predict.tolist() == [[3, 4]] * 2
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1]] * 2
    assert batch.segments.tolist() == [[0, 0, 0, 1, 1]] * 2


def test_padding_of_either_side_changes_nothing() -> None:
    model = unified()
    source, target = texts(5, 3), texts(2, 6)
    whole = model.loss(joined_batch(Pair(source, target), start=1))
    parts = torch.zeros((), dtype=torch.float64)
    for row in range(2):
        one = Pair(*(pad_rows([t.ids[row][t.real[row]].tolist()]) for t in (source, target)))
        parts = parts + model.loss(joined_batch(one, start=1)) * one.target.ids.shape[1]
    torch.testing.assert_close(whole, parts / 8)


def test_causal_and_reversed_batches_are_the_two_chain_rules() -> None:
    model = unified()
    (row,) = texts(6).ids.tolist()
    forward = enclose(pad_rows([row]), start=1)
    logits = model(causal_batch(forward))[0]
    expected = []
    for t in range(6):
        short = pad_rows([[1, *row[:t], 0]])
        expected.append(model(causal_batch(short))[0, t])
    torch.testing.assert_close(logits, torch.stack(expected))
    assert causal_batch(forward).labels.tolist() == [row]

    backward = reversed_batch(enclose(pad_rows([row]), end=2))
    assert backward.labels.tolist() == [row]
    logits = model(backward)[0]
    for t in range(6):  # what stands before t + 1 must not matter
        changed = backward.ids.clone()
        changed[0, :t] = 4
        other = Batch(**{**vars(backward), "ids": changed})
        torch.testing.assert_close(model(other)[0, t], logits[t])


def test_a_prefix_batch_asks_for_what_follows_the_prefix() -> None:
    tokens = texts(7, 5)
    batch = prefix_batch(tokens, torch.tensor([3, 2]))
    full = causal_batch(tokens).labels
    assert batch.labels.tolist()[0] == [-100, -100, *full[0].tolist()[2:]]
    assert batch.labels.tolist()[1] == [-100, *full[1].tolist()[1:]]
    allowed = batch.mask.dense(6, 6)
    assert torch.equal(allowed, prefix(torch.tensor([3, 2])).dense(6, 6))


def test_a_masked_batch_asks_for_what_it_hides() -> None:
    tokens = texts(20, 13)
    batch = masked_batch(tokens, mask_id=2, ratio=0.2, mask=causal(), generator=gen())
    assert batch.predict is not None
    assert batch.labels.shape == (2, 4)
    for row, (predict, labels) in enumerate(zip(batch.predict, batch.labels, strict=True)):
        hidden = [int(p) for p, y in zip(predict, labels, strict=True) if y >= 0]
        assert hidden == (batch.ids[row] == 2).nonzero().flatten().tolist()
        assert [int(tokens.ids[row, p]) for p in hidden] == [int(y) for y in labels if y >= 0]
    assert int((batch.labels >= 0).sum()) == 4 + 3
    assert batch.mask.is_causal
    # Its loss is the mean over the hidden tokens of all rows.
    model = unified()
    logs = model(batch).log_softmax(-1)
    picked = [
        logs[r, c, int(batch.labels[r, c])]
        for r in range(2)
        for c in range(4)
        if batch.labels[r, c] >= 0
    ]
    torch.testing.assert_close(model.loss(batch), -torch.stack(picked).mean())


# --- GLM -----------------------------------------------------------------------------------------

MASK, START, END = 28, 29, 30


def test_the_figure_of_glm() -> None:
    # x3 and x5 x6 are hidden. Positions of the figure count from 1, ours from 0.
    spans = torch.tensor([[0, 0, 1, 0, 1, 1]]).bool()
    tokens = pad_rows([[1, 2, 3, 4, 5, 6]])
    found = set()
    for seed in range(20):
        batch = glm_batch(tokens, spans, mask_id=7, start=8, end=9, generator=gen(seed))
        found.add(tuple(batch.ids[0].tolist()))
        if batch.ids[0, 6] == 5:
            assert batch.ids.tolist() == [[1, 2, 7, 4, 7, 8, 5, 6, 8, 3]]
            assert batch.labels.tolist() == [[5, 6, 9, 3, 9]]
            assert batch.positions is not None
            assert batch.segments is not None
            assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 4, 4, 4, 2, 2]]
            assert batch.segments.tolist() == [[0, 0, 0, 0, 0, 1, 2, 3, 1, 2]]
    assert found == {(1, 2, 7, 4, 7, 8, 5, 6, 8, 3), (1, 2, 7, 4, 7, 8, 3, 8, 5, 6)}


def naive_glm(row: list[int], spans: list[bool], order: list[int]) -> tuple[list[int], ...]:
    """Ids, labels, and both positions, token by token."""
    left: list[int] = []
    runs: list[tuple[int, list[int]]] = []
    for place, token in enumerate(row):
        if not spans[place]:
            left.append(token)
        elif place and spans[place - 1]:
            runs[-1][1].append(token)
        else:
            runs.append((len(left), [token]))
            left.append(MASK)
    ids, labels, first, second = left[:], [], list(range(len(left))), [0] * len(left)
    for home, run in (runs[k] for k in order):
        ids += [START, *run]
        labels += [*run, END]
        first += [home] * (len(run) + 1)
        second += range(1, len(run) + 2)
    return ids, labels, first, second


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
    roomy=st.booleans(),
)
def test_glm_batches_equal_the_definition(rows: list[list[bool]], seed: int, roomy: bool) -> None:
    tokens = pad_rows([list(range(3, 3 + len(row))) for row in rows])
    spans = pad_rows([[int(b) for b in row] for row in rows]).ids.bool()
    batch = glm_batch(
        tokens,
        spans,
        mask_id=MASK,
        start=START,
        end=END,
        room=20 if roomy else None,
        generator=gen(seed),
    )
    assert batch.predict is not None
    assert batch.positions is not None
    assert batch.segments is not None
    for index, row in enumerate(rows):
        real = batch.real[index]
        keep = batch.labels[index] >= 0
        got = (
            batch.ids[index][real].tolist(),
            batch.labels[index][keep].tolist(),
            batch.positions[index][real].tolist(),
            batch.segments[index][real].tolist(),
        )
        count = sum(b and not (k and row[k - 1]) for k, b in enumerate(row))
        text = list(range(3, 3 + len(row)))
        options = [naive_glm(text, row, list(o)) for o in permutations(range(count))]
        assert list(got) in [list(option) for option in options]
        # The labels stand where they are predicted.
        assert bool(batch.real[index].gather(0, batch.predict[index][keep]).all())


def test_glm_in_one_pass_is_the_chain_rule() -> None:
    model = unified()
    tokens, spans = texts(9), torch.tensor([[0, 1, 1, 0, 0, 1, 0, 1, 1]]).bool()
    batch = glm_batch(tokens, spans, mask_id=MASK, start=START, end=END, generator=gen())
    logits = model(batch)
    assert batch.positions is not None
    assert batch.segments is not None
    width = batch.ids.shape[1] - logits.shape[1]
    for t in range(logits.shape[1]):
        cut = slice(0, width + t + 1)  # nothing that comes later is there at all
        alone = Batch(
            ids=batch.ids[:, cut],
            real=batch.real[:, cut],
            labels=batch.labels[:, : t + 1],
            mask=prefix(width),
            predict=torch.tensor([[width + t]]),
            positions=batch.positions[:, cut],
            segments=batch.segments[:, cut],
        )
        torch.testing.assert_close(model(alone)[0, 0], logits[0, t])


def test_the_jacobian_of_glm_is_its_mask() -> None:
    spans = torch.tensor([[0, 0, 1, 0, 1, 1]]).bool()
    batch = glm_batch(texts(6), spans, mask_id=MASK, start=START, end=END, generator=gen())
    n = batch.ids.shape[1]
    x = torch.randn(n, 12, generator=gen(), dtype=torch.float64)
    places = {"positions": batch.positions, "segments": batch.segments}
    encoder = unified().encoder
    seen = influence(lambda x: encoder(None, embeddings=x[None], mask=batch.mask, **places)[0], x)
    allowed = torch.tensor([[j < 5 or j <= i for j in range(n)] for i in range(n)])
    assert torch.equal(seen, allowed)


# --- XLNet ---------------------------------------------------------------------------------------


def test_all_orders_give_each_set_of_tokens_its_weight() -> None:
    # Brute force for n = 3 with any conditionals: the mean over orders of the sum of logs.
    n = 3
    g = gen()
    table = {
        (i, s): float(torch.randn((), generator=g))
        for i in range(n)
        for r in range(n)
        for s in map(frozenset, combinations(set(range(n)) - {i}, r))
    }
    orders = list(permutations(range(n)))
    mean = sum(table[z[t], frozenset(z[:t])] for z in orders for t in range(n)) / len(orders)
    weights = {
        (i, s): math.factorial(len(s)) * math.factorial(n - 1 - len(s)) / math.factorial(n)
        for i, s in table
    }
    assert math.isclose(mean, sum(weights[k] * table[k] for k in table))
    assert math.isclose(sum(weights.values()), n)


def test_the_query_stream_predicts_all_tokens_of_an_order_in_one_pass() -> None:
    # Each prediction again from the tokens that come before it in the order, and nothing else.
    model = two_stream()
    ids = torch.randint(0, V, (1, N), generator=gen())
    order = torch.tensor([[3, 0, 5, 6, 1, 4, 2]])
    rank = order_ranks(order)
    predict = torch.arange(N)[None]
    logits = model(ids, predict, allowed=rank_masks(rank).query)
    for t, place in enumerate(order[0].tolist()):
        known = set(order[0, :t].tolist())
        changed = torch.tensor([[int(ids[0, j]) if j in known else 11 for j in range(N)]])
        other = model(changed, torch.tensor([[place]]), allowed=rank_masks(rank).query)
        torch.testing.assert_close(other[0, 0], logits[0, place])


def test_masked_language_modeling_is_one_step_of_the_permuted_one() -> None:
    # Rank 0 for the masked tokens: each prediction conditions on the others alone.
    model = two_stream()
    ids = torch.randint(0, V, (1, N), generator=gen())
    rank = torch.tensor([[-1, 0, -1, 0, 0, -1, -1]])
    predict = torch.tensor([[1, 3, 4]])
    logits = model(ids, predict, allowed=rank_masks(rank).query)
    hidden = ids.masked_fill(rank == 0, 2)  # as a masked model would read it
    torch.testing.assert_close(model(hidden, predict, allowed=rank_masks(rank).query), logits)
    # Fully ordered, the second of them does depend on the first.
    ranks = torch.tensor([[-1, 0, -1, 1, 2, -1, -1]])
    changed = model(hidden, predict, allowed=rank_masks(ranks).query)
    assert not torch.allclose(changed, model(ids, predict, allowed=rank_masks(ranks).query))


def test_predictions_are_the_rows_of_all_predictions() -> None:
    model = two_stream()
    ids = torch.randint(0, V, (2, N), generator=gen())
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [5, 5, 5, 5, 5, 5, 9]])
    allowed = rank_masks(RANKS.expand(2, N)).query
    every = model(ids, torch.arange(N).expand(2, N), allowed=allowed, segments=segments)
    predict = torch.tensor([[6, 0, 3], [2, 2, 4]])
    some = model(ids, predict, allowed=allowed, segments=segments)
    torch.testing.assert_close(some, every.gather(1, predict[..., None].expand(-1, -1, V)))
    # A rule and its table are the same.
    table = allowed.dense(N, N)[:, 0]
    torch.testing.assert_close(model(ids, predict, allowed=table, segments=segments), some)


def test_scores_are_those_of_transformer_xl() -> None:
    layer = two_stream().blocks[0].attention
    assert isinstance(layer, TwoStreamAttention)
    x = torch.randn(2, N, 12, generator=gen(), dtype=torch.float64)
    own = layer.projections
    Q, K, V_ = own._project(x, None, None, None)
    assert isinstance(layer.relative, TransformerXLBias)
    places = torch.arange(N)
    scores = Q @ K.mT + layer.relative(Q, places, places, K)
    weights = (scores / 2.0).softmax(-1)  # heads of width 4
    expected = own._mix(weights @ V_)
    full = torch.ones(2, 1, N, N, dtype=torch.bool)
    encodings = two_stream()._encodings(N, x)
    out, _ = layer(x, None, encodings=encodings, content_mask=full)
    torch.testing.assert_close(out, expected)


def test_the_sites_of_both_streams_fit_together() -> None:
    model = two_stream()
    ids, predict = texts(N, N).ids, torch.tensor([[2, 4, 0], [1, 3, 5]])
    rank = torch.full((2, N), -1).scatter(1, predict, torch.tensor([[0, 1, 2], [2, 0, 1]]))
    allowed = rank_masks(rank).query
    with watch(model, read=["*"]) as seen:
        logits = model(ids, predict, allowed=allowed)
    assert list(seen) == list(site_names(model))
    torch.testing.assert_close(logits, model(ids, predict, allowed=allowed))  # the fused path
    assert torch.equal(seen["logits"], logits)
    for layer in range(len(model.blocks)):
        at = f"blocks.{layer}.attention"
        V_ = seen[f"{at}.projections.values"]
        for kind, rows in (("", N), ("query_", 3)):
            A = seen[f"{at}.{kind}weights"]
            assert A.shape == (2, SIZES["heads"], rows, N)
            torch.testing.assert_close(seen[f"{at}.{kind}heads"], A @ V_)
            S = seen[f"{at}.{kind}scores"]
            torch.testing.assert_close(S.softmax(-1).nan_to_num(0.0), A)
    # What the query stream holds at the end is what the output layer reads.
    last = seen[f"blocks.{len(model.blocks) - 1}.query_stream"]
    torch.testing.assert_close(model.head(last), logits)
    with watch(model, replace={"*.query_weights": lambda A: A * 0}):
        assert not torch.allclose(model(ids, predict, allowed=allowed), logits)
        torch.testing.assert_close(model.hidden(ids), two_stream().hidden(ids))


def test_attention_weights_of_both_streams_are_dropped_in_training_only() -> None:
    model, plain = two_stream(attention_dropout=0.3), two_stream()
    ids, predict = texts(N, N).ids, torch.tensor([[2, 4, 0], [1, 3, 5]])
    torch.testing.assert_close(model.eval()(ids, predict), plain(ids, predict))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for read in (None, predict):  # either stream
            made = model.train()(ids, read)
            assert not torch.allclose(made, plain(ids, read), atol=1e-3)


def test_padding_is_not_read_by_the_streams() -> None:
    model = two_stream()
    ids = torch.randint(0, V, (1, N), generator=gen())
    rank = torch.tensor([[-1, 0, -1, 1, -1]])
    predict = torch.tensor([[1, 3]])
    short = model(ids[:, :5], predict, allowed=rank_masks(rank).query)
    real = torch.arange(N)[None] < 5
    longer = torch.nn.functional.pad(rank, (0, 2), value=-1)
    padded = model(ids, predict, allowed=rank_masks(longer).query, real=real)
    torch.testing.assert_close(padded, short)


def test_the_loss_of_the_two_stream_model_counts_what_it_is_told() -> None:
    model = two_stream()
    ids = torch.randint(0, V, (2, N), generator=gen())
    predict = torch.tensor([[1, 3], [4, 0]])
    counts = torch.tensor([[True, True], [True, False]])
    allowed = rank_masks(torch.full((2, N), -1).scatter(1, predict, 0)).query
    logs = model(ids, predict, allowed=allowed).log_softmax(-1)
    expected = -(logs[0, 0, ids[0, 1]] + logs[0, 1, ids[0, 3]] + logs[1, 0, ids[1, 4]]) / 3
    loss = model.loss(ids, predict, allowed=allowed, counts=counts)
    torch.testing.assert_close(loss, expected)


def test_dropout_acts_in_training_only() -> None:
    model = two_stream(dropout=0.5)
    ids = torch.randint(0, V, (1, N), generator=gen())
    model.eval()
    torch.testing.assert_close(model(ids), model(ids))
    model.train()
    torch.manual_seed(0)
    assert not torch.allclose(model(ids), model(ids))


# --- meta, dtypes, errors ------------------------------------------------------------------------


def test_models_run_on_meta() -> None:
    tokens = Tokens(*(part.to("meta") for part in texts(9, 5)))
    model, streams_ = unified().to("meta"), two_stream().to("meta")
    spans = random_spans(tokens.real, generator=gen())
    batches = [
        causal_batch(tokens),
        reversed_batch(tokens),
        prefix_batch(tokens, torch.tensor([2, 3], device="meta")),
        masked_batch(tokens, mask_id=2, generator=gen()),
        joined_batch(span_corruption(tokens, sentinel=30, generator=gen()), start=1),
        glm_batch(tokens, spans, mask_id=2, start=1, end=0, room=6, generator=gen()),
    ]
    for batch in batches:
        assert model.loss(batch).device.type == "meta"
    rank, where = random_ranks(tokens.real, ratio=0.4, generator=gen())
    assert rank.device.type == "meta"
    loss = streams_.loss(tokens.ids, where, allowed=rank_masks(rank).query, real=tokens.real)
    assert loss.device.type == "meta"
    assert reach(torch.ones(3, 3, dtype=torch.bool, device="meta"), layers=2).shape == (3, 3)


def test_models_follow_the_device(device: torch.device) -> None:
    tokens = texts(9, 5)
    there = Tokens(*(part.to(device) for part in tokens))
    model = unified().float()
    one = model.loss(masked_batch(tokens, mask_id=2, generator=gen()))
    two = model.to(device).loss(masked_batch(there, mask_id=2, generator=gen()))
    torch.testing.assert_close(one, two.cpu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_floats_stay_finite_and_close(dtype: torch.dtype) -> None:
    tokens = texts(9, 5)
    ids = tokens.ids
    predict = torch.tensor([[1, 3], [4, 0]])
    allowed = rank_masks(torch.full(tuple(ids.shape), -1).scatter(1, predict, 0)).query
    exact = two_stream().loss(ids, predict, allowed=allowed, real=tokens.real)
    out = two_stream().to(dtype).loss(ids, predict, allowed=allowed, real=tokens.real)
    # bfloat16 has 8 bits; some dozen roundings, each of a relative 2**-9.
    assert abs(float(out.detach()) - float(exact.detach())) < (
        0.1 if dtype == torch.bfloat16 else 1e-4
    )


def test_the_loss_of_an_encoder_decoder_is_its_cross_entropy() -> None:
    config = TransformerConfig(**SIZES, context=20)
    model = initialize_(EncoderDecoder(config), generator=gen(), std=0.4).double()
    pair = Pair(texts(5, 3), texts(2, 6))
    decoder_input = torch.cat([torch.ones(2, 1, dtype=torch.long), pair.target.ids[:, :-1]], 1)
    logits = model(
        pair.source.ids,
        decoder_input,
        source_real=pair.source.real,
        target_real=pair.target.real,
    )
    real = pair.target.real
    expected = torch.nn.functional.cross_entropy(logits[real], pair.target.ids[real])
    torch.testing.assert_close(seq2seq_loss(model, pair, start=1), expected)


@pytest.mark.usefixtures("own_checks")
def test_errors_name_what_is_wrong() -> None:
    tokens = texts(6, 4)
    with pytest.raises(ValueError, match="rank must be integers"):
        rank_masks(torch.zeros(3).long())
    with pytest.raises(ValueError, match="allowed must be square"):
        reach(torch.ones(2, 3, dtype=torch.bool), layers=1)
    with pytest.raises(ValueError, match="layers must be 0 or more"):
        reach(torch.ones(2, 2, dtype=torch.bool), layers=-1)
    with pytest.raises(ValueError, match="ratio must lie in"):
        random_ranks(tokens.real, ratio=2.0, generator=gen())
    with pytest.raises(ValueError, match="the spans need 7 columns, and room is 3"):
        glm_batch(tokens, tokens.real, mask_id=1, start=2, end=3, room=3, generator=gen())
    every = torch.ones_like(tokens.real)
    with pytest.raises(ValueError, match="real tokens only"):
        glm_batch(tokens, every, mask_id=1, start=2, end=3, generator=gen())
    with pytest.raises(ValueError, match="NoPositions"):
        TwoStream(TransformerConfig(**SIZES, context=9))
    with pytest.raises(ValueError, match="norm_place='post'"):
        TwoStream(TransformerConfig(**SIZES, context=9, positions=NoPositions()))
    with pytest.raises(ValueError, match="kv_heads"):
        TwoStream(
            TransformerConfig(
                **SIZES, context=9, positions=NoPositions(), norm_place="post", kv_heads=1
            )
        )
    model = two_stream(segments=0)
    ids = torch.zeros(1, 5, dtype=torch.long)
    with pytest.raises(ValueError, match="no segments"):
        model(ids, segments=ids)
    with pytest.raises(ValueError, match="more than the context"):
        model(torch.zeros(1, 41, dtype=torch.long))
    with pytest.raises(ValueError, match="ids must lie in"):
        model(ids + V)
    with pytest.raises(ValueError, match="predict must lie in"):
        model(ids, ids + 5)
    with pytest.raises(ValueError, match="real must be Bool"):
        model(ids, real=ids)
