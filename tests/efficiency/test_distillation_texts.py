"""Distillation through texts and hidden states, and the run that the chapter shows."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from companion import data
from companion.core import randn, watch
from companion.efficiency.distillation import (
    WrittenTexts,
    feature_loss,
    forward_kl,
    generalized_jsd,
    gkd_loss,
    minilm_loss,
    relation,
    reverse_kl,
    sequence_kd_loss,
    written_texts,
)
from companion.models import greedy, sample
from companion.pretraining.autoregressive import next_token_loss
from companion.transformer.block import Decoder, TransformerConfig


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return randn(*shape, generator=generator, dtype=torch.float64)


def a_decoder(seed: int, vocab: int = 7) -> Decoder:
    sizes = TransformerConfig(vocab=vocab, dim=12, layers=1, heads=3, ff_dim=13, context=17)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Decoder(sizes).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # away from the uniform answers of a fresh model
    return model


TEACHER, STUDENT = a_decoder(1), a_decoder(2)
PROMPTS = torch.tensor([[0, 3], [0, 5], [0, 1]])


# ------------------------------------------------------------------ texts


def test_what_is_written_counts_up_to_the_end() -> None:
    class Script:
        """A pick that writes given columns."""

        def __init__(self) -> None:
            self.columns = iter([[4, 6, 2], [6, 1, 3], [3, 6, 5]])

        def __call__(self, logits: Tensor, history: Any, /) -> Tensor:
            return torch.tensor(next(self.columns))

    texts = written_texts(TEACHER, PROMPTS, tokens=3, pick=Script(), stop=[6])
    # What comes after the end is filled up by the loop, and must not count.
    assert texts.ids.tolist() == [[0, 3, 4, 6, 6], [0, 5, 6, 6, 6], [0, 1, 2, 3, 5]]
    assert texts.counts.int().tolist() == [[0, 0, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 1]]
    plain = written_texts(TEACHER, PROMPTS, tokens=4)
    assert torch.equal(plain.ids[:, :2], PROMPTS)
    assert plain.counts.int().sum().item() == 12
    assert not plain.ids.requires_grad


def test_the_default_writes_the_likeliest_tokens() -> None:
    texts = written_texts(TEACHER, PROMPTS, tokens=4)
    for place in range(2, 6):
        logits = TEACHER(texts.ids[:, :place])[:, -1]
        assert torch.equal(texts.ids[:, place], greedy(logits))


def test_the_loss_of_texts_is_the_mean_surprise_at_what_was_written() -> None:
    texts = written_texts(TEACHER, PROMPTS, tokens=4, stop=[6])
    surprise, n = 0.0, 0
    with torch.no_grad():
        log_probs = STUDENT(texts.ids).log_softmax(-1)
    for row, place in itertools.product(range(3), range(1, texts.ids.shape[1])):
        if texts.counts[row, place]:
            surprise -= float(log_probs[row, place - 1, texts.ids[row, place]])
            n += 1
    found = float(sequence_kd_loss(STUDENT, texts).detach())
    assert found == pytest.approx(surprise / n, abs=1e-12)
    every = WrittenTexts(texts.ids, torch.ones_like(texts.counts))
    torch.testing.assert_close(
        sequence_kd_loss(STUDENT, every), next_token_loss(STUDENT, texts.ids)
    )


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_loss_on_texts_is_the_divergence_at_the_places_that_count(beta: float) -> None:
    texts = written_texts(STUDENT, PROMPTS, tokens=4, pick=sample(generator=torch.Generator()))
    kept = texts.counts[:, 1:]
    s, t = STUDENT(texts.ids[:, :-1])[kept], TEACHER(texts.ids[:, :-1])[kept]
    want = generalized_jsd(s, t, beta=beta, scaled=True)
    torch.testing.assert_close(gkd_loss(STUDENT, TEACHER, texts, beta=beta), want)


def test_the_teacher_gets_no_gradient_and_the_student_does() -> None:
    student, teacher = a_decoder(2), a_decoder(1)
    texts = written_texts(student, PROMPTS, tokens=4)
    gkd_loss(student, teacher, texts, beta=1.0).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    head = student.head.weight.grad
    assert head is not None
    assert float(head.abs().max()) > 1e-3
    other = written_texts(student, PROMPTS, tokens=4)
    assert torch.equal(other.ids, texts.ids)


def test_the_divergence_of_texts_goes_with_the_prefixes_of_its_first_argument() -> None:
    """Both directions by enumeration; with the other one's prefixes neither comes out."""
    start = torch.zeros(1, 1, dtype=torch.long)

    def law(model: Decoder) -> Tensor:  # of all 49 texts of two tokens
        rows = torch.tensor([[0, a, b] for a in range(7) for b in range(7)])
        with torch.no_grad():
            log_probs = model(rows[:, :-1]).log_softmax(-1)
        return log_probs.gather(2, rows[:, 1:, None]).sum((1, 2))

    log_p, log_q = law(TEACHER), law(STUDENT)
    first = torch.cat([start.expand(7, 1), torch.arange(7)[:, None]], 1)
    with torch.no_grad():
        s, t = STUDENT(first), TEACHER(first)
    for divergence, writer, whole in (
        (forward_kl, t, (log_p.exp() * (log_p - log_q)).sum()),
        (reverse_kl, s, (log_q.exp() * (log_q - log_p)).sum()),
    ):
        sums = []
        for weights in (writer[0, 0].softmax(0), (t if writer is s else s)[0, 0].softmax(0)):
            later = [weights[a] * divergence(s[a : a + 1, 1], t[a : a + 1, 1]) for a in range(7)]
            sums.append(divergence(s[:1, 0], t[:1, 0]) + torch.stack(later).sum())
        torch.testing.assert_close(sums[0], whole)
        assert abs(float(sums[1] - whole)) > 1e-3


def test_steps_on_its_own_texts_bring_a_student_to_its_teacher() -> None:
    student, generator = a_decoder(2), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    prompts = torch.zeros(32, 1, dtype=torch.long)
    losses = []
    for _ in range(40):
        texts = written_texts(student, prompts, tokens=5, pick=sample(generator=generator))
        loss = gkd_loss(student, TEACHER, texts, beta=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


@pytest.mark.usefixtures("own_checks")
def test_texts_that_do_not_fit_are_refused() -> None:
    texts = written_texts(TEACHER, PROMPTS, tokens=3)
    with pytest.raises(ValueError, match="same shape"):
        sequence_kd_loss(STUDENT, WrittenTexts(texts.ids, texts.counts[:, 1:]))
    with pytest.raises(ValueError, match="without tokens teaches nothing"):
        gkd_loss(STUDENT, TEACHER, WrittenTexts(texts.ids, ~(texts.ids >= 0)), beta=0.5)
    with pytest.raises(ValueError, match="nothing was written"):
        sequence_kd_loss(STUDENT, WrittenTexts(texts.ids, ~(texts.ids >= 0)))
    with pytest.raises(ValueError, match="the vocabularies do"):
        gkd_loss(a_decoder(3, vocab=11), TEACHER, texts, beta=0.5)


# ------------------------------------------------------------------ hidden states


def test_the_loss_of_states_is_a_sum_over_components_and_a_mean_over_tokens() -> None:
    s, t, W = numbers(2, 3, 5), numbers(2, 3, 7, seed=1), numbers(5, 7, seed=2)
    want = F.mse_loss(s @ W, t) * 7
    torch.testing.assert_close(feature_loss(s, t, W), want)
    torch.testing.assert_close(feature_loss(t, t + 1), torch.tensor(7.0).double())
    real = torch.tensor([[True, True, False], [True, False, False]])
    torch.testing.assert_close(feature_loss(s, t, W, real=real), feature_loss(s[real], t[real], W))


def test_the_best_projection_is_that_of_least_squares() -> None:
    s, t = numbers(11, 3), numbers(11, 7, seed=1)
    W = torch.linalg.lstsq(s, t).solution.requires_grad_()
    (slope,) = torch.autograd.grad(feature_loss(s, t, W), W)
    assert float(slope.abs().max()) < 1e-12
    assert float(feature_loss(s, t, W).detach()) > 0.1  # rank 3 is not rank 7


def test_a_relation_is_attention_without_values() -> None:
    q, k = numbers(2, 3, 5, 7), numbers(2, 3, 5, 7, seed=1)
    for causal in (False, True):
        eye = torch.eye(5).double().expand(2, 3, 5, 5)
        want = F.scaled_dot_product_attention(q, k, eye, is_causal=causal)
        torch.testing.assert_close(relation(q, k, causal=causal).exp(), want)
    real = torch.tensor([[True] * 5, [True, True, True, False, False]])
    weights = relation(q, k, real=real).exp()
    assert not weights[1, :, :3, 3:].any()
    torch.testing.assert_close(weights[1, :, :3, :3], relation(q[1, :, :3], k[1, :, :3]).exp())
    assert bool(relation(q, k, real=~real).exp().isfinite().all())  # a row of padding alone


def test_relations_are_those_of_any_coordinates() -> None:
    v = numbers(5, 7)
    turn = torch.linalg.qr(numbers(7, 7, seed=1)).Q
    torch.testing.assert_close(relation(v @ turn), relation(v))
    assert float((relation(2 * v) - relation(v)).abs().max()) > 0.1
    # The scale is that of the own width, so padding by zeros is not without effect.
    assert float((relation(F.pad(v, (0, 5))) - relation(v)).abs().max()) > 1e-3


def test_minilm_s_loss_by_hand_and_under_padding() -> None:
    student = tuple(numbers(2, 3, 5, 7, seed=i) for i in range(3))
    teacher = tuple(numbers(2, 3, 5, 11, seed=10 + i) for i in range(3))
    total = 0.0
    for one, other in ((0, 1), (2, 2)):
        a = (student[one] @ student[other].mT / 7**0.5).log_softmax(-1)
        b = (teacher[one] @ teacher[other].mT / 11**0.5).log_softmax(-1)
        total += float(F.kl_div(a, b, reduction="sum", log_target=True)) / (2 * 3 * 5)
    assert float(minilm_loss(student, teacher)) == pytest.approx(total, abs=1e-12)
    real = torch.tensor([[True] * 5, [True, True, True, False, False]])
    padded = float(minilm_loss(student, teacher, real=real))
    parts = []
    for row, n in ((0, 5), (1, 3)):
        cut = [tuple(x[row : row + 1, :, :n] for x in states) for states in (student, teacher)]
        parts.append(n * float(minilm_loss(cut[0], cut[1])))
    assert padded == pytest.approx(sum(parts) / 8, abs=1e-12)


def test_states_of_padding_do_not_reach_the_gradient() -> None:
    real = torch.tensor([[True] * 5, [True, True, True, False, False]])
    s, t, W = numbers(2, 5, 3), numbers(2, 5, 7, seed=1), numbers(3, 7, seed=2).requires_grad_()
    dirty_s, dirty_t = (torch.where(real[..., None], x, torch.nan) for x in (s, t))
    have = torch.autograd.grad(feature_loss(dirty_s, dirty_t, W, real=real), W)[0]
    torch.testing.assert_close(have, torch.autograd.grad(feature_loss(s, t, W, real=real), W)[0])
    student = tuple(numbers(2, 3, 5, 7, seed=i).requires_grad_() for i in range(3))
    teacher = tuple(numbers(2, 3, 5, 11, seed=10 + i) for i in range(3))
    dirty = tuple(torch.where(real[:, None, :, None], x, torch.nan) for x in teacher)
    found, wanted = (minilm_loss(student, x, real=real) for x in (dirty, teacher))
    torch.testing.assert_close(found, wanted)
    slopes = torch.autograd.grad(found, student)
    for slope, want in zip(slopes, torch.autograd.grad(wanted, student), strict=True):
        torch.testing.assert_close(slope, want)


def test_minilm_s_loss_reads_the_sites_of_a_model_and_its_gradient_is_exact() -> None:
    ids = torch.tensor([[0, 3, 2, 5], [1, 4, 4, 6]])
    names = [f"blocks.0.attention.{part}" for part in ("queries", "keys", "values")]
    states = []
    for model in (STUDENT, TEACHER):
        with watch(model, read=names) as seen:
            model(ids)
        states.append(tuple(seen[name] for name in names))
    loss = minilm_loss(states[0], tuple(x.detach() for x in states[1]), causal=True)
    slopes = torch.autograd.grad(loss, states[0])
    assert min(float(slope.abs().max()) for slope in slopes) > 1e-6
    q, k, v = (numbers(1, 2, 3, 5, seed=i).requires_grad_() for i in range(3))
    told = tuple(numbers(1, 2, 3, 7, seed=5 + i) for i in range(3))
    assert torch.autograd.gradcheck(lambda *x: minilm_loss(x, told, causal=True), (q, k, v))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: feature_loss(numbers(3, 5), numbers(3, 7)), "pass a projection"),
        (lambda: feature_loss(numbers(3, 5), numbers(3, 7), numbers(7, 5)), "projection must have"),
        (lambda: feature_loss(numbers(2, 5), numbers(3, 7), numbers(5, 7)), "the same tokens"),
        (lambda: relation(numbers(3, 5), numbers(3, 7)), "the same shape"),
        (lambda: relation(numbers(2, 3, 5), real=torch.ones(2, 4).bool()), "and 3 tokens"),
        (lambda: relation(numbers(2, 3, 5), real=torch.ones(4, 3).bool()), "the batch's axes"),
        (
            lambda: minilm_loss((numbers(2, 3, 5, 7),) * 3, (numbers(2, 6, 5, 7),) * 3),
            "same batch, heads and tokens",
        ),
        (lambda: minilm_loss((numbers(3, 5, 7),) * 3, (numbers(3, 5, 7),) * 3), "queries of the"),
    ],
)
@pytest.mark.usefixtures("own_checks")
def test_states_that_do_not_fit_are_refused(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_states_stay_and_meta_tensors_will_do() -> None:
    parts = tuple(numbers(2, 3, 5, 7, seed=i) for i in range(3))
    before = [part.clone() for part in parts]
    real = torch.ones(2, 5, dtype=torch.bool)
    for where in ("cpu", "meta"):
        moved = tuple(part.to(where) for part in parts)
        assert minilm_loss(moved, moved, real=real.to(where)).device.type == where
        assert feature_loss(moved[0], moved[1]).device.type == where
    assert all(torch.equal(a, b) for a, b in zip(parts, before, strict=True))


# ------------------------------------------------------------------ the stored run


def test_the_script_of_the_run_runs(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = scripts.load("distillation_student")

    class Letters:
        """Bytes as tokens, as far as a vocabulary of 131 goes."""

        def encode(self, text: str, add_special_tokens: bool) -> SimpleNamespace:
            assert not add_special_tokens
            return SimpleNamespace(ids=[1 + byte % 130 for byte in text[:600].encode()])

        def decode(self, ids: list[int]) -> str:
            return " ".join(map(str, ids))

    shape = TransformerConfig(vocab=131, dim=12, layers=1, heads=3, ff_dim=13, context=256)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = Decoder(shape).eval()
    text = SimpleNamespace(model=teacher, tokenizer=Letters(), start=0)
    monkeypatch.setattr(script, "smollm2", lambda: text)
    model = ["--seeds", "2", "--layers", "1", "--dim", "8", "--heads", "2", "--lr", "0.05"]
    sizes = [*model, "--rows", "12", "--test", "4", "--passes", "2", "--k", "5"]
    threads = torch.get_num_threads()
    try:
        results = scripts.run("distillation_student", *sizes).results
    finally:
        torch.set_num_threads(threads)
    runs = results["runs"]
    assert [(run["seed"], run["arm"]) for run in runs] == [
        (seed, arm) for seed in range(2) for arm in ("answers", "texts", "alone", "equal")
    ]
    starts = {run["seed"]: run["curve"][0] for run in runs}
    for run in runs:
        assert len(run["nats"]) == len(run["kl"]) == 4
        assert run["curve"][0] == starts[run["seed"]]  # all begin with the same weights
        assert run["loss"][-1] < run["loss"][0]
    assert starts[0] != starts[1]
    steps = {run["arm"]: run["steps"] for run in runs}
    assert steps["answers"] == steps["alone"] == steps["texts"] == 2 * 12 // 4
    # As many operations as the answers' student and its teacher together, to half a step.
    extra = (steps["equal"] - steps["answers"]) * results["step_flops"]
    assert abs(extra - 12 * results["row_flops"]) <= results["step_flops"] / 2
    assert 0 < results["kept_mass"] < 1


def test_the_stored_run_is_what_the_chapter_says() -> None:
    run = data.stored_run("distillation_student")
    assert run.command == "python book/_runs/distillation_student.py"
    results = run.results
    assert results["cpu_seconds"] < 30 * 60
    assert len(results["runs"]) == 12
    assert results["size"] == [2, 128, 4]
    assert (results["rows"], results["passes"], results["k"]) == (128, 6, 64)
    means: dict[tuple[str, int], float] = {}
    for one in results["runs"]:
        means[one["arm"], one["seed"]] = sum(one["nats"]) / len(one["nats"])
    # In each seed: answers beat no teacher, its texts do not, and fresh text beats both.
    for seed in range(3):
        order = [means[arm, seed] for arm in ("equal", "answers", "alone", "texts")]
        assert order == sorted(order)
