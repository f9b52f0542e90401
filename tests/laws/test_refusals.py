"""What is out of a documented domain is refused by name, and no other error speaks first."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from companion.foundations import embeddings as em
from companion.foundations import language_models as lm
from companion.pretraining import autoregressive as ar
from companion.pretraining import denoising as dn
from companion.pretraining import self_supervised as ss
from companion.pretraining import transfer as tr
from companion.transformer import attention as at
from companion.transformer import cost
from companion.transformer.block import (
    Decoder,
    EncoderDecoder,
    StreamingCache,
    TransformerConfig,
)

from .public import numbers


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


IDS = torch.tensor([[3, 4, 5, 6, 7], [4, 6, 2, 3, 8]])
GOOD = dn.Tokens(IDS, torch.ones_like(IDS).bool())
#: Padding before the first token.
LEFT = dn.Tokens(IDS, torch.tensor([[True] * 5, [False, True, True, True, True]]))
SPANS = torch.tensor([[False, True, True, False, False]] * 2)
CONFIG = TransformerConfig(vocab=11, dim=12, layers=1, heads=3, ff_dim=13, context=17)
TABLE = numbers(7, 3)
HIGH = torch.tensor([0, 7])
LAW = ar.ScalingLaw(1.7, 400.0, 410.0, 0.34, 0.28)
FIT = ar.ScalingFit(LAW, 0.0, (LAW, LAW))
ROOF = cost.Roofline(1e12, 1e11)
VECTORS = em.Embeddings(words=("a", "b", "c"), vectors=numbers(3, 2))
COUNTS = lm.count_ngrams(*lm.windows([IDS[0]], order=2, vocab_size=9, eos=0), vocab_size=9)
HELD = lm.windows([IDS[1]], order=2, vocab_size=9, eos=0)


def decoder() -> Decoder:
    with torch.random.fork_rng(devices=[]):
        return Decoder(CONFIG)


def translator() -> EncoderDecoder:
    with torch.random.fork_rng(devices=[]):
        return EncoderDecoder(CONFIG)


PADDED = "must be padded on the right"
#: A call with one wrong argument, and what the error says.
CASES: list[tuple[str, str, Callable[[], Any]]] = [
    (
        "subsample",
        r"ids .*\[0, 2\), got 7",
        lambda: em.subsample(HIGH, torch.ones(2), generator=seeded()),
    ),
    ("cooccurrence", r"ids .*\[0, 7\), got 7", lambda: em.cooccurrence(HIGH, size=7, window=2)),
    (
        "character_ngrams",
        "min_n must be 1 or more, got 0",
        lambda: em.character_ngrams("where", min_n=0),
    ),
    (
        "character_ngrams",
        "max_n must be 3 or more, got 2",
        lambda: em.character_ngrams("where", max_n=2),
    ),
    ("embed", r"ids .*\[0, 7\), got 7", lambda: em.embed(TABLE, HIGH)),
    (
        "embed_gradient",
        r"ids .*\[0, 7\), got 7",
        lambda: em.embed_gradient(HIGH, TABLE[:2], size=7),
    ),
    (
        "skipgram_loss",
        r"targets .*\[0, 7\), got 7",
        lambda: em.skipgram_loss(TABLE[:2], TABLE, HIGH),
    ),
    (
        "skipgram_gradients",
        r"targets .*\[0, 7\), got 7",
        lambda: em.skipgram_gradients(TABLE[:2], TABLE, HIGH),
    ),
    ("nearest", "count must be 1 or more, got 0", lambda: em.nearest(VECTORS, "a", count=0)),
    (
        "analogy",
        "count must be 1 or more, got 0",
        lambda: em.analogy(VECTORS, "a", "b", "c", count=0),
    ),
    (
        "fit_mixture",
        "steps must be 1 or more, got 0",
        lambda: lm.fit_mixture(torch.ones(3, 2), steps=0),
    ),
    (
        "jelinek_mercer",
        "steps must be 1 or more, got 0",
        lambda: lm.jelinek_mercer(COUNTS, *HELD, steps=0),
    ),
    (
        "jelinek_mercer",
        "buckets must be 1 or more, got 0",
        lambda: lm.jelinek_mercer(COUNTS, *HELD, buckets=0),
    ),
    (
        "expected_mistakes",
        r"recovery must lie in \[0\.0, 1\.0\], got 1\.5",
        lambda: ar.expected_mistakes(5, error=0.1, recovery=1.5),
    ),
    (
        "text_log_probs",
        "batch_size must be 1 or more, got 0",
        lambda: ar.text_log_probs(decoder(), IDS[0], start=0, batch_size=0),
    ),
    (
        "PackedTokens",
        "world must be 1 or more, got 0",
        lambda: ar.PackedTokens(IDS[0], context=2, batch=1, world=0),
    ),
    (
        "PackedTokens",
        "seed must be 0 or more, got -1",
        lambda: ar.PackedTokens(IDS[0], context=2, batch=1, seed=-1),
    ),
    (
        "PackedTokens",
        "context must be 1 or more, got 0",
        lambda: ar.PackedTokens(IDS[0], context=0, batch=1),
    ),
    (
        "PackedTokens",
        "rank must be from 0 to 1, got -1",
        lambda: ar.PackedTokens(IDS[0], context=2, batch=1, rank=-1, world=2),
    ),
    (
        "optimal_allocation",
        r"cost must lie in \(0\.0, inf\), got 0",
        lambda: ar.optimal_allocation(LAW, 1e20, cost=0.0),
    ),
    (
        "fit_scaling_law",
        "starts must be 1 or more, got 0",
        lambda: ar.fit_scaling_law(*(numbers(7).abs() + 2 for _ in range(3)), starts=0),
    ),
    (
        "ScalingFit.interval",
        r"level must lie in \(0\.0, 1\.0\), got 1",
        lambda: FIT.interval("E", level=1.0),
    ),
    (
        "ScalingFit.interval",
        r"level must lie in \(0\.0, 1\.0\), got 0",
        lambda: FIT.interval("E", level=0.0),
    ),
    (
        "infill_lengths",
        "largest must be 0 or more, got -1",
        lambda: dn.infill_lengths(torch.tensor([3]), largest=-1, generator=seeded()),
    ),
    (
        "expected_infill_spans",
        "budget must be 0 or more, got -1",
        lambda: dn.expected_infill_spans(-1),
    ),
    ("span_counts", "length must be 0 or more, got -1", lambda: dn.span_counts(-1)),
    (
        "split_spans",
        "sentinel must be 0 or more, got -1",
        lambda: dn.split_spans(GOOD, SPANS, sentinel=-1),
    ),
    (
        "split_spans",
        "sentinels must be 1 or more, got 0",
        lambda: dn.split_spans(GOOD, SPANS, sentinel=99, sentinels=0),
    ),
    ("split_spans", PADDED, lambda: dn.split_spans(LEFT, SPANS, sentinel=99)),
    ("span_corruption", PADDED, lambda: dn.span_corruption(LEFT, sentinel=99, generator=seeded())),
    (
        "mixture_of_denoisers",
        PADDED,
        lambda: dn.mixture_of_denoisers(LEFT, sentinel=99, generator=seeded()),
    ),
    (
        "glm_batch",
        PADDED,
        lambda: dn.glm_batch(LEFT, SPANS, mask_id=9, start=1, end=0, generator=seeded()),
    ),
    ("token_masking", PADDED, lambda: dn.token_masking(LEFT, mask_id=9, generator=seeded())),
    ("token_deletion", PADDED, lambda: dn.token_deletion(LEFT, generator=seeded())),
    ("text_infilling", PADDED, lambda: dn.text_infilling(LEFT, mask_id=9, generator=seeded())),
    (
        "sentence_permutation",
        PADDED,
        lambda: dn.sentence_permutation(LEFT, stops=[2], generator=seeded()),
    ),
    ("document_rotation", PADDED, lambda: dn.document_rotation(LEFT, generator=seeded())),
    (
        "fill_in_the_middle",
        PADDED,
        lambda: dn.fill_in_the_middle(LEFT, suffix=9, prefix=10, middle=11, generator=seeded()),
    ),
    ("enclose", PADDED, lambda: dn.enclose(LEFT, start=1, end=0)),
    ("masked_batch", PADDED, lambda: dn.masked_batch(LEFT, mask_id=9, generator=seeded())),
    ("causal_batch", PADDED, lambda: dn.causal_batch(LEFT)),
    ("reversed_batch", PADDED, lambda: dn.reversed_batch(LEFT)),
    ("joined_batch", "source " + PADDED, lambda: dn.joined_batch(dn.Pair(LEFT, GOOD), start=1)),
    ("joined_batch", "target " + PADDED, lambda: dn.joined_batch(dn.Pair(GOOD, LEFT), start=1)),
    (
        "seq2seq_loss",
        "source " + PADDED,
        lambda: dn.seq2seq_loss(translator(), dn.Pair(LEFT, GOOD), start=1),
    ),
    (
        "seq2seq_loss",
        "target " + PADDED,
        lambda: dn.seq2seq_loss(translator(), dn.Pair(GOOD, LEFT), start=1),
    ),
    (
        "vicreg_terms",
        r"eps must lie in \[0\.0, inf\), got -1",
        lambda: ss.vicreg_terms(TABLE, TABLE + 1, eps=-1.0),
    ),
    (
        "barlow_twins",
        r"eps must lie in \[0\.0, inf\), got -1",
        lambda: ss.barlow_twins(TABLE, TABLE + 1, eps=-1.0),
    ),
    (
        "self_similarity",
        "count must be 1 or more, got 0",
        lambda: tr.self_similarity(TABLE[:2], torch.tensor([0, 0]), count=0),
    ),
    (
        "attention",
        r"dropout must lie in \[0\.0, 1\.0\), got 1",
        lambda: at.attention(TABLE, TABLE, TABLE, dropout=1.0, generator=seeded()),
    ),
    ("layer_cost", "dim must be 1 or more, got 0", lambda: cost.layer_cost("attention", 5, 0)),
    ("measure_roofline", "size must be 1 or more, got 0", lambda: cost.measure_roofline(size=0)),
    (
        "measure_roofline",
        "megabytes must be 1 or more, got 0",
        lambda: cost.measure_roofline(size=8, megabytes=0),
    ),
    ("Roofline.attainable", r"intensity must lie in \[0\.0", lambda: ROOF.attainable(-1.0)),
    ("Roofline.seconds", r"flops must lie in \[0\.0", lambda: ROOF.seconds(-1.0, 1.0)),
    ("Roofline.seconds", r"moved must lie in \[0\.0", lambda: ROOF.seconds(1.0, -1.0)),
    ("Decoder.cache", "capacity must be from 1 to 17, got 18", lambda: decoder().cache(2, 18)),
    (
        "EncoderDecoder.cache",
        "source must be from 1 to 17, got 18",
        lambda: translator().cache(2, 5, source=18),
    ),
    (
        "StreamingCache.for_model",
        r"sinks \+ window must be from 1 to 17, got 18",
        lambda: StreamingCache.for_model(decoder(), sinks=4, window=14),
    ),
    (
        "StreamingCache",
        "spare must be 0 or more, got -1",
        lambda: StreamingCache(1, 2, 3, 4, 5, 6, spare=-1),
    ),
]


@pytest.mark.parametrize(
    ("message", "call"), [(m, c) for _, m, c in CASES], ids=[f"{n}-{m[:24]}" for n, m, _ in CASES]
)
def test_what_is_out_of_its_domain_is_refused_by_name(
    message: str, call: Callable[[], Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        call()
