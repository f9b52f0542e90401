"""The linear-chain CRF: equal to the sum over all paths, and to pytorch-crf."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchcrf import CRF

from companion.core import generator, randn
from companion.knowledge import entity_linking as el

NEVER = -math.inf
B, N, K = 5, 4, 3
#: Whole, with a hole, missing in front, one token only, two tokens apart.
REAL = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0], [0, 1, 0, 1]]).bool()
FORBIDDEN = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 1]]).bool()


def scores(scale: float = 1.0, *, constrained: bool = False) -> dict[str, Tensor]:
    g = generator(3)
    made = {
        "emissions": randn(B, N, K, generator=g, dtype=torch.float64) * scale,
        "transitions": randn(K, K, generator=g, dtype=torch.float64),
        "start": randn(K, generator=g, dtype=torch.float64),
        "end": randn(K, generator=g, dtype=torch.float64),
    }
    if constrained:
        made["transitions"] = made["transitions"].masked_fill(FORBIDDEN, NEVER)
        made["start"] = made["start"].masked_fill(torch.tensor([False, True, False]), NEVER)
    return made


def paths(s: dict[str, Tensor], row: int, real: Tensor = REAL) -> tuple[list[Any], Tensor]:
    """All paths over the tokens of a row, and their scores, by the definition."""
    places = real[row].nonzero()[:, 0].tolist()
    all_paths = list(itertools.product(range(s["transitions"].shape[0]), repeat=len(places)))
    totals = []
    for y in all_paths:
        total = s["start"][y[0]] + s["end"][y[-1]]
        for place, tag in zip(places, y, strict=True):
            total = total + s["emissions"][row, place, tag]
        for before, after in itertools.pairwise(y):
            total = total + s["transitions"][before, after]
        totals.append(total)
    return all_paths, torch.stack(totals)


def brute(s: dict[str, Tensor]) -> Tensor:
    sums = []
    for row in range(len(s["emissions"])):
        totals = paths(s, row)[1]
        sums.append(totals[totals > NEVER].logsumexp(0))
    return torch.stack(sums)


SCALES = [(1.0, False), (1.0, True), (400.0, False), (3000.0, True)]


@pytest.mark.parametrize(("scale", "constrained"), SCALES)
def test_the_sum_and_its_gradient_are_those_of_all_paths(scale: float, constrained: bool) -> None:
    s = {k: v.requires_grad_() for k, v in scores(scale, constrained=constrained).items()}
    have, want = el.crf_log_partition(**s, real=REAL), brute(s)
    # Sums of some thousand nats keep 16 digits.
    torch.testing.assert_close(have, want, rtol=1e-13, atol=1e-12)
    weights = torch.tensor([0.3, 1.7, -0.4, 2.0, 0.9], dtype=torch.float64)
    for mine, its in zip(
        torch.autograd.grad((have * weights).sum(), list(s.values())),
        torch.autograd.grad((want * weights).sum(), list(s.values())),
        strict=True,
    ):
        torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-12)


def test_a_lost_path_would_be_noticed() -> None:
    # In float64 e^-3000 is 0: a scaled sum alone loses the only allowed path and gives NaN.
    s = scores(3000.0, constrained=True)
    from companion.knowledge.entity_linking import _crf

    chain = _crf._chain(*s.values(), None)
    assert _crf._scaled(chain) is None
    chain = _crf._chain(*scores(1.0, constrained=True).values(), None)
    assert _crf._scaled(chain) is not None


def test_a_share_below_the_normal_numbers_keeps_its_digits() -> None:
    # Two tags that never follow each other. e^-735 has about four digits left in float64, and in
    # the end nothing else remains: a scaled sum would be wrong by 1e-4, and would not be NaN.
    psi = torch.tensor([[[0.0, -735.0], [-737.0, 0.0]]], dtype=torch.float64)
    apart = torch.tensor([[0.0, NEVER], [NEVER, 0.0]], dtype=torch.float64)
    psi.requires_grad_()
    have = el.crf_log_partition(psi, apart)
    assert have.item() == pytest.approx(-735 + math.log1p(math.exp(-2)), rel=1e-15)
    (slope,) = torch.autograd.grad(have.sum(), psi)
    want = torch.full((2,), 1 / (1 + math.exp(-2)), dtype=torch.float64)
    torch.testing.assert_close(slope[0, :, 1], want, rtol=1e-12, atol=0)
    told = el.crf_marginals(psi.detach(), apart)
    torch.testing.assert_close(told.tags, slope, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("scale", "constrained"), SCALES)
@pytest.mark.parametrize("learns", [False, True])
def test_marginals_entropy_and_paths_are_those_of_all_paths(
    scale: float, constrained: bool, learns: bool
) -> None:
    s = scores(scale, constrained=constrained)
    if learns:
        s["emissions"].requires_grad_()
    told = el.crf_marginals(**s, real=REAL)
    entropy = el.crf_entropy(**s, real=REAL)
    best = el.viterbi(**s, real=REAL)
    some = el.k_best_paths(**s, k=5, real=REAL)
    for row in range(B):
        all_paths, totals = paths(s, row)
        p = totals.softmax(0)
        places = REAL[row].nonzero()[:, 0].tolist()
        tags = torch.zeros(N, K, dtype=torch.float64)
        pairs = torch.zeros(K, K, dtype=torch.float64)
        for y, share in zip(all_paths, p.tolist(), strict=True):
            for place, tag in zip(places, y, strict=True):
                tags[place, tag] += share
            for before, after in itertools.pairwise(y):
                pairs[before, after] += share
        tolerance = 1e-12 * max(scale, 1.0) * 10
        torch.testing.assert_close(told.tags[row], tags, rtol=0, atol=tolerance)
        torch.testing.assert_close(told.pairs[row], pairs, rtol=0, atol=tolerance)
        want = -(torch.xlogy(p, p)).sum()
        torch.testing.assert_close(entropy[row], want, rtol=0, atol=1e-11 * max(scale, 1.0))
        order = totals.argsort(descending=True)
        assert best.tags[row][REAL[row]].tolist() == list(all_paths[int(order[0])])
        assert (best.tags[row][~REAL[row]] == -1).all()
        torch.testing.assert_close(best.score[row], totals[order[0]])
        allowed = [int(i) for i in order[:5] if totals[i] > NEVER]
        for rank, path in enumerate(allowed):
            assert some.tags[row, rank][REAL[row]].tolist() == list(all_paths[path])
        assert (some.score[row, len(allowed) :] == NEVER).all()
        assert (some.tags[row, len(allowed) :] == -1).all()


def test_second_derivatives_are_covariances() -> None:
    # d2 log Z / d psi_s,i d psi_t,j = P(y_s = i, y_t = j) - P(y_s = i) P(y_t = j).
    s = scores()

    def log_z(psi: Tensor) -> Tensor:
        return el.crf_log_partition(psi, s["transitions"], start=s["start"], end=s["end"])[0]

    psi = s["emissions"][:1]
    have = torch.autograd.functional.hessian(log_z, psi)[0, :, :, 0]
    all_paths, totals = paths(s, 0)
    p = totals.softmax(0)
    on = torch.zeros(len(all_paths), N, K, dtype=torch.float64)
    for number, y in enumerate(all_paths):
        on[number, range(N), y] = 1
    flat = on.flatten(1)
    mean = p @ flat
    want = (flat * p[:, None]).t() @ flat - mean[:, None] * mean
    torch.testing.assert_close(have.reshape(N * K, N * K), want, rtol=0, atol=1e-13)


def test_gradients_of_marginals_and_entropy_are_those_of_differences() -> None:
    s = scores(constrained=True)
    s["emissions"].requires_grad_()

    def entropy(psi: Tensor) -> Tensor:
        return el.crf_entropy(psi, **{k: v for k, v in s.items() if k != "emissions"}, real=REAL)

    def tags(psi: Tensor) -> Tensor:
        rest = {k: v for k, v in s.items() if k != "emissions"}
        return el.crf_marginals(psi, **rest, real=REAL).tags

    assert torch.autograd.gradcheck(entropy, s["emissions"])
    assert torch.autograd.gradcheck(tags, s["emissions"])


def test_functional_transforms_see_the_same() -> None:
    s = scores()
    psi, rest = s.pop("emissions"), s
    plain = el.crf_log_partition(psi, **rest)

    def one(row: Tensor) -> Tensor:
        return el.crf_log_partition(row[None], **rest)[0]

    torch.testing.assert_close(torch.func.vmap(one)(psi), plain)
    slopes = torch.func.vmap(torch.func.grad(one))(psi)
    torch.testing.assert_close(slopes, el.crf_marginals(psi, **rest).tags)


def peer(s: dict[str, Tensor]) -> CRF:
    crf = CRF(s["transitions"].shape[0], batch_first=True).to(s["transitions"].dtype)
    with torch.no_grad():
        crf.transitions.copy_(s["transitions"])
        crf.start_transitions.copy_(s["start"])
        crf.end_transitions.copy_(s["end"])
    return crf


@settings(max_examples=25)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 11), st.integers(0, 10**6))
def test_right_padded_batches_are_those_of_pytorch_crf(
    batch: int, tags: int, n: int, seed: int
) -> None:
    g = generator(seed)
    psi = randn(batch, n, tags, generator=g, dtype=torch.float64)
    s = {
        "transitions": randn(tags, tags, generator=g, dtype=torch.float64),
        "start": randn(tags, generator=g, dtype=torch.float64),
        "end": randn(tags, generator=g, dtype=torch.float64),
    }
    y = torch.randint(tags, (batch, n), generator=g)
    lengths = torch.randint(1, n + 1, (batch,), generator=g)
    real = torch.arange(n) < lengths[:, None]
    crf = peer(s)
    have = el.crf_nll(psi, y.masked_fill(~real, -100), **s, real=real, reduction="none")
    want = -crf(psi, y, mask=real, reduction="none")
    torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-12)
    assert (have >= -1e-12).all()
    best = el.viterbi(psi, **s, real=real)
    for row, path in enumerate(crf.decode(psi, real)):
        assert best.tags[row, : lengths[row]].tolist() == path


def test_padding_may_stand_anywhere() -> None:
    g = generator(5)
    psi, y = randn(1, 3, K, generator=g, dtype=torch.float64), torch.tensor([[2, 0, 1]])
    s = scores()
    del s["emissions"]
    want = el.crf_nll(psi, y, **s)
    for places in ([0, 1, 2], [2, 3, 4], [0, 2, 4]):
        wide = torch.full((1, 5, K), 77.0, dtype=torch.float64)
        tags = torch.full((1, 5), -100)
        real = torch.zeros(1, 5, dtype=torch.bool)
        wide[:, places], tags[:, places], real[:, places] = psi, y, True
        torch.testing.assert_close(el.crf_nll(wide, tags, **s, real=real), want)
        marginals = el.crf_marginals(wide, **s, real=real).tags
        torch.testing.assert_close(marginals[:, places], el.crf_marginals(psi, **s).tags)
        assert (marginals[~real] == 0).all()


@pytest.mark.parametrize("filled", [math.nan, math.inf, NEVER, 1e300])
@pytest.mark.parametrize("scale", [1.0, 3000.0])
def test_what_stands_at_padding_is_not_looked_at(filled: float, scale: float) -> None:
    # Emissions of padding may be NaN, as those of an attention without keys are in some libraries.
    s = scores(scale, constrained=True)
    y = el.viterbi(**s, real=REAL).tags
    dirty = {**s, "emissions": s["emissions"].masked_fill(~REAL[..., None], filled)}
    for of in (el.crf_log_partition, el.crf_entropy):
        slopes = []
        for given_scores in (s, dirty):
            held = {k: v.clone().requires_grad_() for k, v in given_scores.items()}
            total = of(**held, real=REAL)
            slopes.append([total, *torch.autograd.grad(total.sum(), list(held.values()))])
        for clean, other in zip(*slopes, strict=True):
            torch.testing.assert_close(other, clean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        el.crf_nll(**dirty, tags=y, real=REAL), el.crf_nll(**s, tags=y, real=REAL)
    )
    for one, other in zip(
        el.crf_marginals(**dirty, real=REAL), el.crf_marginals(**s, real=REAL), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert torch.equal(el.viterbi(**dirty, real=REAL).tags, y)
    best = el.k_best_paths(**dirty, k=3, real=REAL)
    torch.testing.assert_close(best.score, el.k_best_paths(**s, k=3, real=REAL).score)


def test_long_padding_leaves_the_slopes_alone() -> None:
    # Behind a sentence of three tokens, 600 steps of padding: sums over paths there pass e^709.
    g = generator(9)
    s = {k: v for k, v in scores().items() if k != "emissions"}
    s["transitions"] += 2.0  # the same law, and larger sums
    psi = randn(1, 3, K, generator=g, dtype=torch.float64).requires_grad_()
    real = (torch.arange(603) < 3)[None]

    def padded(psi: Tensor) -> Tensor:
        return torch.cat([psi, psi.new_full((1, 600, K), 2.0)], 1)

    for of in (
        lambda psi, **more: el.crf_entropy(psi, **s, **more).sum(),
        lambda psi, **more: el.crf_marginals(psi, **s, **more).pairs[0, 0, 1],
        lambda psi, **more: el.crf_marginals(psi, **s, **more).tags[0, 1, 2],
    ):
        want = torch.autograd.grad(of(psi), psi)[0]
        have = torch.autograd.grad(of(padded(psi), real=real), psi)[0]
        torch.testing.assert_close(have, want, rtol=1e-10, atol=1e-12)


def test_a_nan_at_a_token_stays_one() -> None:
    s = scores()
    s["emissions"][1, 2, 0] = math.nan
    told = el.crf_log_partition(**s, real=REAL)
    assert told.isnan().tolist() == [False, True, False, False, False]


def test_a_dropped_token_takes_its_choices_along() -> None:
    zeros, none = torch.zeros(1, 3, 2), torch.zeros(2, 2)
    real = torch.tensor([[True, False, True]])
    assert el.crf_log_partition(zeros, none).item() == pytest.approx(3 * math.log(2))
    assert el.crf_log_partition(zeros, none, real=real).item() == pytest.approx(2 * math.log(2))
    assert el.viterbi(zeros, none, real=real).tags.tolist() == [[0, -1, 0]]


def test_starts_and_ends_bind_the_best_path() -> None:
    psi = torch.tensor([[[0.8, 0.2], [0.1, 0.9]]])
    never = torch.tensor([[0.0, 0.0], [0.0, NEVER]])
    end = torch.tensor([0.0, NEVER])
    best = el.viterbi(psi, never, end=end)
    assert best.tags.tolist() == [[0, 0]]
    assert best.score.item() == pytest.approx(0.9)
    free = el.viterbi(psi, torch.zeros(2, 2))
    assert free.tags.tolist() == [[0, 1]]
    assert free.score.item() == pytest.approx(1.7)


def test_where_nothing_is_allowed_there_is_no_path() -> None:
    psi, never = torch.zeros(1, 2, 2), torch.full((2, 2), NEVER)
    assert el.crf_log_partition(psi, never).item() == NEVER
    best = el.viterbi(psi, never)
    assert best.tags.tolist() == [[-1, -1]]
    assert best.score.item() == NEVER
    # There is no distribution, and so no marginal and no entropy; the sum has no slope.
    assert el.crf_marginals(psi, never).tags.isnan().all()
    assert el.crf_entropy(psi, never).isnan().all()
    scores = psi.clone().requires_grad_()
    (slope,) = torch.autograd.grad(el.crf_log_partition(scores, never).sum(), scores)
    assert (slope == 0).all()
    # One token has no transition.
    assert el.crf_log_partition(psi[:, :1], never).item() == pytest.approx(math.log(2))


def test_a_tag_that_is_ruled_out_at_one_token_takes_nothing() -> None:
    s = scores()
    s["emissions"][:, 1, 2] = NEVER
    s["emissions"].requires_grad_()
    have = el.crf_log_partition(**s, real=REAL)
    torch.testing.assert_close(have, brute(s), rtol=1e-13, atol=1e-12)
    (slope,) = torch.autograd.grad(have.sum(), s["emissions"])
    assert torch.isfinite(slope).all()
    assert (slope[:, 1, 2] == 0).all()
    assert torch.isfinite(el.crf_entropy(**s, real=REAL)).all()


def test_half_precision_is_summed_in_float32() -> None:
    g = generator(7)
    psi = randn(3, 200, 5, generator=g).bfloat16()
    T = randn(5, 5, generator=g).bfloat16()
    have = el.crf_log_partition(psi, T)
    assert have.dtype == torch.float32
    torch.testing.assert_close(have.double(), el.crf_log_partition(psi.double(), T.double()))


def test_all_runs_on_the_meta_device() -> None:
    psi = torch.zeros(2, 3, 5, device="meta", requires_grad=True)
    T, y = torch.zeros(5, 5, device="meta"), torch.zeros(2, 3, dtype=torch.long, device="meta")
    real = torch.ones(2, 3, dtype=torch.bool, device="meta")
    el.crf_nll(psi, y, T, real=real).backward()
    assert psi.grad is not None
    assert psi.grad.device.type == "meta"
    assert el.viterbi(psi, T, real=real).tags.shape == (2, 3)
    assert el.k_best_paths(psi, T, 4, real=real).tags.shape == (2, 4, 3)
    assert el.crf_marginals(psi, T, real=real).pairs.shape == (2, 5, 5)
    assert el.crf_entropy(psi, T, real=real).shape == (2,)


def test_a_device_gives_the_same(device: torch.device) -> None:
    s = {k: v.float().to(device) for k, v in scores(constrained=True).items()}
    have = el.crf_log_partition(**s, real=REAL.to(device)).cpu()
    torch.testing.assert_close(have.double(), brute(scores(constrained=True)), rtol=1e-5, atol=1e-5)


def test_inputs_stay_as_they_were() -> None:
    s = scores(constrained=True)
    before = {k: v.clone() for k, v in s.items()}
    el.crf_marginals(**s, real=REAL)
    el.viterbi(**s, real=REAL)
    el.k_best_paths(**s, k=2, real=REAL)
    assert all(torch.equal(s[k], before[k]) for k in s)


@pytest.mark.usefixtures("own_checks")
def test_what_does_not_fit_is_refused() -> None:
    psi, T, y = torch.zeros(2, 3, 5), torch.zeros(5, 5), torch.zeros(2, 3, dtype=torch.long)
    real = torch.ones(2, 3, dtype=torch.bool)
    empty = real.clone()
    empty[1] = False
    with pytest.raises(ValueError, match="row 1 of real has no token"):
        el.crf_nll(psi, y, T, real=empty)
    with pytest.raises(ValueError, match=r"real must be boolean, got torch.int64"):
        el.crf_nll(psi, y, T, real=real.long())
    with pytest.raises(ValueError, match=r"real must have shape \(2, 3\)"):
        el.viterbi(psi, T, real=real[:, :2])
    with pytest.raises(ValueError, match=r"transitions must have shape \(5, 5\)"):
        el.crf_log_partition(psi, T[:4])
    with pytest.raises(ValueError, match="no empty axis"):
        el.crf_log_partition(psi[:, :0], T)
    with pytest.raises(ValueError, match=r"tags at real tokens must lie in \[0, 5\), got -100"):
        el.crf_nll(psi, y - 100, T)
    with pytest.raises(ValueError, match=r"tags must have shape \(2, 3\)"):
        el.crf_score(psi, y[:, :2], T)
    with pytest.raises(ValueError, match="true path of row 0 is forbidden"):
        el.crf_nll(psi, y, T.masked_fill(torch.eye(5).bool(), NEVER))
    with pytest.raises(ValueError, match="reduction must be"):
        el.crf_nll(psi, y, T, reduction="token")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k must be 1 or more"):
        el.k_best_paths(psi, T, 0)
    with pytest.raises(ValueError, match="constrain must be"):
        el.LinearChainCRF(3, constrain="never")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"starts must be boolean of shape \(3,\)"):
        el.LinearChainCRF(3, starts=torch.ones(4).bool())


def test_the_layer_learns_the_law_that_drew_the_paths() -> None:
    # Paths of a known chain: at the optimum, expected transitions are the counted ones.
    g = generator(11)
    P = torch.tensor([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1], [0.3, 0.3, 0.4]])
    y = [torch.randint(3, (200, 1), generator=g)]
    for _ in range(6):
        y.append(torch.multinomial(P[y[-1][:, 0]], 1, generator=g))
    tags = torch.cat(y, 1)
    layer = el.LinearChainCRF(3)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=60)
    psi = torch.zeros(200, 7, 3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = layer(psi, tags)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    counted = torch.zeros(3, 3)
    for before, after in itertools.pairwise(range(7)):
        counted.index_put_((tags[:, before], tags[:, after]), torch.ones(200), accumulate=True)
    expected = layer.marginals(psi).pairs.sum(0)
    torch.testing.assert_close(expected, counted, rtol=0, atol=1.0)


def test_constraints_of_training_and_of_decoding_differ() -> None:
    rules = el.tag_constraints(["O", "B-X", "I-X"])
    masks = {"allowed": rules.allowed, "starts": rules.starts, "ends": rules.ends}
    psi, orphan = torch.zeros(1, 2, 3), torch.tensor([[0, 2]])
    psi[0, 1, 2] = 9.0
    always = el.LinearChainCRF(3, **masks)
    with pytest.raises(ValueError, match="forbidden"):
        always(psi, orphan)
    late = el.LinearChainCRF(3, **masks, constrain="decode")
    assert torch.isfinite(late(psi, orphan))
    for layer in (always, late):
        assert layer.decode(psi).tags.tolist() == [[1, 2]]
        assert layer.marginals(psi).tags[0, 0, 0].item() < 1e-3
    assert {name for name, _ in always.named_parameters()} == {"transitions", "start", "end"}
    assert el.LinearChainCRF(3).decode(psi).tags[0, 1] == 2
