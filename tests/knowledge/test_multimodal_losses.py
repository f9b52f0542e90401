"""Two towers: losses against formulas and transformers, in chunks, and over two processes."""

import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from companion.knowledge.multimodal import (
    DualEncoder,
    clip_gradient,
    clip_loss,
    ensemble,
    itm_loss,
    itm_negatives,
    modality_gap,
    recall_at,
    shift_gap,
    siglip_bias,
    siglip_loss,
    zero_shot,
)


def pairs(n: int = 23, dim: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    U = torch.randn(n, dim, generator=g, dtype=torch.float64)
    V = torch.randn(n, dim, generator=g, dtype=torch.float64)
    return F.normalize(U, dim=1), F.normalize(V, dim=1)


def of_log(scale: float) -> float:
    return math.log(scale)


def test_the_logarithm_of_the_scale_is_what_is_stored() -> None:
    # Two orthogonal pairs: ln(1 + e^-s). A scale without its exponential gives another value.
    eye = torch.eye(2, dtype=torch.float64)
    for scale, value in ((1.0, 0.31326), (2.6593, 0.06766), (1 / 0.07, 6.2e-7)):
        loss = float(clip_loss(eye, eye, of_log(scale)))
        assert loss == pytest.approx(math.log1p(math.exp(-scale)), rel=1e-9)
        assert loss == pytest.approx(value, rel=2e-2)


def test_clip_equals_that_of_transformers() -> None:
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss as theirs

    U, V = pairs()
    logits = math.exp(2.0) * V @ U.T
    torch.testing.assert_close(clip_loss(U, V, 2.0), theirs(logits), rtol=1e-13, atol=0)


@pytest.mark.parametrize("chunk_size", [1, 5, 23, 100])
def test_chunks_change_neither_loss_nor_gradient(chunk_size: int) -> None:
    for scale in (0.3, math.log(100.0)):
        inputs = [*pairs(), torch.tensor(scale, dtype=torch.float64)]
        inputs = [x.requires_grad_() for x in inputs]
        dense = clip_loss(*inputs)
        cut = clip_loss(*inputs, chunk_size=chunk_size)
        torch.testing.assert_close(cut, dense, rtol=1e-12, atol=1e-14)
        want = torch.autograd.grad(dense, inputs)
        have = torch.autograd.grad(3 * cut, inputs)
        by_hand = clip_gradient(*(x.detach() for x in inputs))
        for one, other, third in zip(have, want, by_hand, strict=True):
            torch.testing.assert_close(one, 3 * other, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(third, other, rtol=1e-10, atol=1e-12)


def test_chunks_hold_no_square_matrix() -> None:
    n, largest = 211, 0
    inputs = [x.requires_grad_() for x in pairs(n, 3)]

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            for x in made if isinstance(made, tuple | list) else [made]:
                if isinstance(x, Tensor):
                    largest = max(largest, x.numel())
            return made

    with Watch():
        torch.autograd.grad(clip_loss(*inputs, 0.0, chunk_size=8), inputs)
    assert largest <= 8 * n
    with Watch():
        clip_loss(*inputs, 0.0)
    assert largest == n * n  # the control


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_autocast_narrows_no_score(chunk_size: int | None) -> None:
    # At a scale of 100, neighbors in bfloat16 are half a nat apart.
    U, V = (x.float() for x in pairs())
    inputs = [x.requires_grad_() for x in (U, V, torch.tensor(math.log(100.0)))]

    def told(autocast: bool) -> list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            losses = [
                clip_loss(*inputs, chunk_size=chunk_size),
                siglip_loss(*inputs, -10.0, chunk_size=chunk_size),
            ]
            by_hand = clip_gradient(*(x.detach() for x in inputs))
        made = [*losses, *by_hand]  # slopes are taken outside of autocast, as PyTorch asks
        for loss in losses:
            made += torch.autograd.grad(loss, inputs)
        return made

    for narrow, plain in zip(told(True), told(False), strict=True):
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow, plain, rtol=1e-6, atol=1e-7)


def test_lengths_in_half_precision_neither_overflow_nor_vanish() -> None:
    towers = DualEncoder(5, 3, dim=4, generator=torch.Generator().manual_seed(0)).half()
    x = torch.zeros(3, 5).half()
    x[1], x[2] = 1e-4, 3e4
    U, _ = towers(x, torch.ones(3, 3).half())
    assert U.dtype == torch.float16
    # A zero vector stays zero; others have length 1, to the eleven bits of their entries.
    torch.testing.assert_close(
        U.float().norm(dim=1), torch.tensor([0.0, 1.0, 1.0]), rtol=0, atol=4 * 2**-11
    )
    long = torch.tensor([[0.0, 0.0], [6e4, 6e4], [0.0, 6e4]]).half()
    want = torch.tensor([[0.0, 0.0], [0.5**0.5, 0.5**0.5], [0.0, 1.0]])
    torch.testing.assert_close(ensemble(long[None]).float(), want, rtol=0, atol=2**-11)
    assert torch.isfinite(modality_gap(long, long[:1])).all()
    assert all(torch.isfinite(x).all() for x in shift_gap(long, long[1:2], 0.5))


def test_equal_texts_leave_a_floor() -> None:
    for times in (2, 3, 5):
        V = torch.eye(7, dtype=torch.float64).repeat_interleave(times, dim=0)
        loss = clip_loss(V, V, math.log(1000.0), chunk_size=4)
        assert float(loss) == pytest.approx(math.log(times), abs=1e-9)


@given(st.integers(0, 1000))
def test_equal_scores_cost_the_logarithm_of_the_batch(seed: int) -> None:
    U, V = pairs(11, 5, seed)
    loss = clip_loss(U, V[:1].expand(11, -1), 1.0)
    rows = torch.full((), math.log(11), dtype=torch.float64)
    columns = F.cross_entropy(math.e * (V[:1] @ U.T).expand(11, -1), torch.arange(11))
    torch.testing.assert_close(loss, (rows + columns) / 2)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(clip_loss(U[order], V[order], 1.0), clip_loss(U, V, 1.0))


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    worker = Path(__file__).with_name("multimodal_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(worker), str(tmp_path)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(worker.parents[2])}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    x, y, model = runpy.run_path(str(worker))["towers"]()
    loss = clip_loss(*model(x, y), model.log_scale)
    loss.backward()
    want = [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    assert len(want) == 4
    for rank in range(2):
        for have in torch.load(tmp_path / f"{rank}.pt", weights_only=True):
            torch.testing.assert_close(have, want, rtol=1e-10, atol=1e-12)


def test_across_needs_processes() -> None:
    with pytest.raises(ValueError, match="asks for a group of processes"):
        clip_loss(*pairs(), 0.0, across=True)


def test_siglip_divides_by_the_pairs_and_not_by_their_square() -> None:
    eye = torch.eye(2, dtype=torch.float64)
    assert float(siglip_loss(eye, eye, math.log(10), -10.0)) == pytest.approx(0.693193, abs=1e-6)
    # The start: b = -ln(n - 1) against b = 0, all scores zero.
    zero = torch.zeros(4, 3, dtype=torch.float64)
    assert siglip_bias(4) == pytest.approx(-1.0986, abs=1e-4)
    assert float(siglip_loss(zero, zero, 0.0, siglip_bias(4))) == pytest.approx(2.2493, abs=1e-4)
    assert float(siglip_loss(zero, zero, 0.0, 0.0)) == pytest.approx(2.7726, abs=1e-4)


def test_siglip_in_chunks_is_the_same() -> None:
    inputs = [*pairs(), torch.tensor(1.3, dtype=torch.float64)]
    inputs.append(torch.tensor(-2.0, dtype=torch.float64))
    inputs = [x.requires_grad_() for x in inputs]
    dense, cut = siglip_loss(*inputs), siglip_loss(*inputs, chunk_size=5)
    U, V, s, b = (x.detach() for x in inputs)
    z = 2 * torch.eye(len(U), dtype=U.dtype) - 1
    by_hand = -(z * (s.exp() * U @ V.T + b)).sigmoid().log().sum() / len(U)
    torch.testing.assert_close(dense.detach(), by_hand, rtol=1e-12, atol=0)
    for one, other in zip(
        torch.autograd.grad(cut, inputs), torch.autograd.grad(dense, inputs), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_the_limit_moves_the_parameter_so_that_it_can_come_back() -> None:
    towers = DualEncoder(5, 3, dim=4, generator=torch.Generator().manual_seed(0))
    assert float(towers.log_scale.detach()) == pytest.approx(math.log(1 / 0.07))
    towers.log_scale.data.fill_(9.0)
    towers.limit_()
    assert float(towers.log_scale.detach().exp()) == pytest.approx(100.0, rel=1e-6)
    U, V = towers(torch.randn(7, 5), torch.randn(7, 3))
    torch.testing.assert_close(U.norm(dim=1), torch.ones(7))
    clip_loss(U, V, towers.log_scale).backward()
    assert float(towers.log_scale.grad.abs()) > 0  # type: ignore[union-attr]


def test_prompts_are_normalized_before_the_mean_and_after() -> None:
    long = torch.tensor([[100.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(ensemble(long), torch.full((2,), 0.5**0.5, dtype=torch.float64))
    _, V = pairs(3, 7)
    assert zero_shot(5 * V, torch.stack([3 * V[2], V[0], V[1]])).tolist() == [1, 2, 0]


def test_recall_counts_ties_as_chances() -> None:
    scores = torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0, 2.0, 1.0, 3.0]])
    targets = torch.tensor([1, 2])
    torch.testing.assert_close(recall_at(scores, targets, 1), torch.tensor([1 / 3, 0.0]))
    torch.testing.assert_close(recall_at(scores, targets, 2), torch.tensor([2 / 3, 0.0]))
    torch.testing.assert_close(recall_at(scores, targets, 3), torch.tensor([1.0, 1.0]))


def test_a_shift_by_the_whole_gap_joins_the_centers() -> None:
    U, V = pairs()
    V = F.normalize(V + 0.7, dim=1)
    gap = modality_gap(U, V)
    torch.testing.assert_close(gap, U.mean(0) - V.mean(0))
    A, B = shift_gap(3 * U, V, 1.0)
    want = F.normalize(U - gap / 2, dim=1), F.normalize(V + gap / 2, dim=1)
    torch.testing.assert_close((A, B), want)
    assert modality_gap(A, B).norm() < 0.5 * gap.norm()
    torch.testing.assert_close(shift_gap(U, V, 0.0)[0], U)


def test_negatives_follow_their_law_and_are_never_the_own_partner() -> None:
    g = torch.Generator().manual_seed(0)
    scores = torch.tensor([[5.0, 1.0, 0.0], [0.0, 5.0, 2.0], [1.0, 1.0, 5.0]])
    drawn = torch.stack([itm_negatives(scores, generator=g) for _ in range(4000)])
    assert not (drawn == torch.arange(3)).any()
    # 4000 draws: the standard error of a share is below 0.008.
    want = math.e / (math.e + 1)
    assert float((drawn[:, 0] == 1).double().mean()) == pytest.approx(want, abs=0.04)
    easy = torch.stack([itm_negatives(scores, generator=g, hard=False) for _ in range(4000)])
    assert float((easy[:, 0] == 1).double().mean()) == pytest.approx(0.5, abs=0.04)
    same = torch.zeros(3, 3, dtype=torch.bool)
    same[0, 1] = True
    assert set(itm_negatives(scores, generator=g, same=same)[:1].tolist()) == {2}
    with pytest.raises(ValueError, match="a row has no negative"):
        itm_negatives(scores, generator=g, same=~same)


def test_matching_is_the_mean_of_binary_entropies() -> None:
    g = torch.Generator().manual_seed(0)
    true = torch.randn(5, generator=g, dtype=torch.float64)
    false = torch.randn(3, generator=g, dtype=torch.float64)
    targets = torch.cat([torch.ones(5), torch.zeros(3)]).double()
    want = F.binary_cross_entropy_with_logits(torch.cat([true, false]), targets)
    torch.testing.assert_close(itm_loss(true, false), want)


def test_errors_say_what_to_do() -> None:
    U, V = pairs()
    with pytest.raises(ValueError, match="one pair has no negative"):
        clip_loss(U[:1], V[:1], 0.0)
    with pytest.raises(ValueError, match="one pair has no negative"):
        clip_gradient(U[:1], V[:1], 0.0)
    with pytest.raises(ValueError, match="the batch is empty"):
        siglip_loss(U[:0], V[:0], 0.0, 0.0)
    with pytest.raises(ValueError, match="rows of V must be 1 or more"):
        modality_gap(U, V[:0])
    with pytest.raises(ValueError, match="temperature must be positive"):
        DualEncoder(2, 3, dim=4, temperature=0.0, generator=torch.Generator())
    with pytest.raises(ValueError, match="one description at least"):
        ensemble(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="at least one pair"):
        itm_loss(torch.zeros(0), torch.zeros(0))
    with pytest.raises(ValueError, match="n must be 2 or more"):
        siglip_bias(1)


def test_a_score_that_is_no_number_finds_nothing() -> None:
    # Scores of a model that has diverged once had a recall of one: k / 0, cut to 1.
    scores = torch.tensor([[math.nan] * 3, [2.0, math.nan, 1.0], [0.0, 1.0, 2.0]])
    hits = recall_at(scores, torch.tensor([0, 0, 2]), 1)
    assert hits.tolist() == [0.0, 0.0, 1.0]
    assert recall_at(scores, torch.tensor([0, 0, 2]), 2).tolist() == [0.0, 1.0, 1.0]


def test_equal_texts_leave_a_floor_whatever_the_pictures() -> None:
    g = torch.Generator().manual_seed(0)
    texts = torch.randn(3, 7, generator=g, dtype=torch.float64).repeat_interleave(2, dim=0)
    U = torch.randn(6, 7, generator=g, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([U], lr=0.3)
    for _ in range(300):
        loss = clip_loss(U, texts, 0.0)
        assert loss > math.log(2) - 1e-12
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < math.log(2) + 0.01


def test_the_length_of_a_description_chooses_no_class() -> None:
    U = torch.tensor([[1.0, 0.2], [0.2, 1.0]])
    assert zero_shot(U, torch.tensor([[1.0, 0.0], [0.0, 50.0]])).tolist() == [0, 1]


def test_half_precision_holds_the_loss_of_many_pairs() -> None:
    loss = itm_loss(torch.full((70_000,), -2.0).half(), torch.zeros(3).half())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor(2.1269), rtol=1e-4, atol=0.0)


def test_edges_are_refused_in_words() -> None:
    g = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="scale must"):
        DualEncoder(2, 3, dim=2, generator=g).limit_(0.0)
    with pytest.raises(ValueError, match="classes must"):
        zero_shot(torch.eye(3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 3\), got 3"):
        recall_at(torch.eye(3), torch.tensor([0, 1, 3]), 1)
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="scores must be finite"):
            itm_negatives(torch.full((3, 3), wrong), generator=g)
