"""Tilts, guidance, steering, prompts: closed forms, transformers, autograd, and by hand."""

import math
from typing import Any

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from companion.core import generator, watch
from companion.generation import control as co
from companion.models import History, generate, load_pretrained, sample
from companion.transformer.block import Decoder, TransformerConfig

V = 23


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def decoder(seed: int = 0, vocab: int = V) -> Decoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = TransformerConfig(vocab=vocab, dim=12, layers=2, heads=3, ff_dim=31, context=47)
        return Decoder(config).eval()


def test_the_gradient_of_log_z_is_the_mean_and_its_hessian_the_covariance() -> None:
    log_p, phi, weights = normal(11), normal(11, 3, seed=1), normal(3, seed=2)

    def log_z(w: Tensor) -> Tensor:
        return co.log_partition(log_p, phi, w)

    q = co.tilt(log_p, phi, weights).exp()
    mean = q @ phi
    centered = phi - mean
    torch.testing.assert_close(torch.func.grad(log_z)(weights), mean)
    covariance = centered.T @ (q[:, None] * centered)
    torch.testing.assert_close(torch.func.hessian(log_z)(weights), covariance)


def test_a_fit_has_the_wished_means_and_no_other_law_is_nearer() -> None:
    log_p, phi = normal(7), normal(7, 2, seed=1)
    inside = phi.mean(0) + 0.3 * (phi[0] - phi.mean(0))
    done = co.fit_tilt(log_p, phi, inside)
    torch.testing.assert_close(done.means, inside, rtol=1e-7, atol=1e-7)
    p = log_p.softmax(-1).numpy()
    features = phi.numpy()

    def kl(q: Any) -> float:
        import numpy as np

        return float((q * (np.log(q) - np.log(p))).sum())

    bounds = [(1e-9, 1.0)] * 7
    wishes = [
        {"type": "eq", "fun": lambda q: q.sum() - 1},
        {"type": "eq", "fun": lambda q: q @ features - inside.numpy()},
    ]
    best = minimize(kl, p, bounds=bounds, constraints=wishes, method="SLSQP", tol=1e-12)
    assert best.success
    assert float(done.kl) == pytest.approx(best.fun, abs=1e-6)


def test_a_mean_on_the_border_is_no_tilt() -> None:
    coin = torch.tensor([[0.0], [1.0]])
    for wish in (1.0, 1.2):
        with pytest.raises(ValueError, match=r"between .* the border excluded"):
            co.fit_tilt(torch.zeros(2), coin, torch.tensor([wish]))


def test_features_that_say_the_same_have_a_fit_too() -> None:
    phi = torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.5, 1.0]])
    done = co.fit_tilt(torch.zeros(3), phi, torch.tensor([0.7, 1.4]))
    torch.testing.assert_close(done.means.float(), torch.tensor([0.7, 1.4]))


def test_a_constant_feature_does_not_keep_a_fit_from_its_end() -> None:
    # Its mean is q(1) c + q(2) c + ..., which rounding may take away from c. Any law grants it.
    g = generator(0)
    for outcomes in (3, 5, 7, 11, 23):
        for value in (0.1, 0.3, 0.7, 1.0, 3.3):
            log_p = torch.randn(outcomes, generator=g, dtype=torch.float64)
            feature = torch.randn(outcomes, 1, generator=g, dtype=torch.float64)
            wish = feature.mean(0)
            plain = co.fit_tilt(log_p, feature, wish)
            constant = torch.full_like(feature, value)
            both = torch.cat([feature, constant], 1)
            told = co.fit_tilt(log_p, both, torch.cat([wish, constant[0]]))
            torch.testing.assert_close(told.weights[:1], plain.weights)
            assert float(told.weights[1]) == 0.0
            torch.testing.assert_close(told.means, torch.cat([wish, constant[0]]))
            torch.testing.assert_close(told.kl, plain.kl)


def test_where_a_feature_is_counted_from_does_not_matter_to_a_fit() -> None:
    log_p, steps = normal(7), torch.arange(7, dtype=torch.float64)[:, None]
    wish = torch.tensor([4.4], dtype=torch.float64)
    plain, far = co.fit_tilt(log_p, steps, wish), co.fit_tilt(log_p, steps + 1e6, wish + 1e6)
    # 10^6 + 4.4 is rounded to 10^-10.
    torch.testing.assert_close(far.weights, plain.weights, rtol=1e-8, atol=0.0)
    torch.testing.assert_close(far.kl, plain.kl, rtol=1e-8, atol=0.0)
    torch.testing.assert_close(far.means, plain.means + 1e6)


def test_a_law_without_outcomes_cannot_be_tilted(own_checks: None) -> None:
    for log_p in ([-math.inf] * 3, [0.0, math.nan, 0.0], [0.0, math.inf, 0.0]):
        with pytest.raises(ValueError, match="a possible outcome"):
            co.fit_tilt(torch.tensor(log_p), torch.eye(3)[:, :1], torch.tensor([0.5]))


@pytest.mark.parametrize("nats", [25.0, 100.0, 300.0])
def test_what_is_all_but_impossible_can_be_wished_for(nats: float) -> None:
    # Odds of e^-nats become 3 to 1: the weight is nats + log 3.
    log_p = torch.tensor([0.0, -nats], dtype=torch.float64)
    done = co.fit_tilt(log_p, torch.tensor([[0.0], [1.0]]), torch.tensor([0.75]))
    assert float(done.weights[0]) == pytest.approx(nats + math.log(3), rel=1e-7)
    assert float(done.kl) == pytest.approx(
        0.75 * (math.log(0.75) + nats) + 0.25 * math.log(0.25), rel=1e-7
    )


def test_guidance_has_the_values_by_hand() -> None:
    c = torch.tensor([0.8, 0.2], dtype=torch.float64).log()
    u = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    for scale, value in ((0.0, 0.5), (1.0, 0.8), (1.5, 0.8889), (3.0, 0.9846), (2.5, 0.9697)):
        got = co.guided_logits(c, u, scale).softmax(-1)[0]
        assert float(got) == pytest.approx(value, abs=5e-5)


def test_guidance_is_a_tilt_by_the_classifier_that_the_model_implies() -> None:
    joint = normal(5, 3).softmax(0)  # columns: p(x|c)
    prior = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    p = joint @ prior
    classifier = joint[:, 1] * prior[1] / p
    for gamma in (-0.5, 0.3, 2.0):
        tilted = co.tilt(p.log(), classifier.log()[:, None], torch.tensor([gamma]).double())
        got = co.guided_logits(joint[:, 1].log(), p.log(), gamma).log_softmax(-1)
        torch.testing.assert_close(got, tilted)
    ruled = co.bayes_logits(p.log(), classifier.log()).softmax(-1)
    torch.testing.assert_close(ruled, joint[:, 1])


def test_what_is_forbidden_stays_forbidden() -> None:
    never = -math.inf
    c, u = torch.tensor([0.0, never, 0.0]), torch.tensor([0.0, 0.0, never])
    for scale in (-1.0, 0.5, 2.0):
        assert torch.equal(co.guided_logits(c, u, scale).isinf(), torch.tensor([False, True, True]))
    assert torch.equal(co.guided_logits(c, u, 0.0), u.log_softmax(-1))
    moved = co.experts_logits(c, c, c, 2.0)
    assert torch.equal(moved.isinf(), torch.tensor([False, True, False]))
    # Both experts forbid what the model allows, or the anti-expert alone: no NaN, no infinity.
    for base, expert, against in ((torch.ones(3), c, c), (torch.zeros(3), torch.zeros(3), c)):
        moved = co.experts_logits(base, expert, against, 0.5)
        assert moved[1] == never
        assert not bool(moved[:1].isinf().any() | moved.softmax(-1).isnan().any())
    assert torch.equal(co.experts_logits(torch.zeros(3), c, c, 0.0), torch.zeros(3))


def twins(tmp_path: Any) -> tuple[Any, Decoder]:
    """One model, theirs and ours."""
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=12,
        intermediate_size=31,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=47,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    ours: Any = load_pretrained(tmp_path)
    return theirs, ours.model.eval()


@pytest.mark.parametrize("scale", [0.5, 1.5, 3.0])
def test_guidance_is_that_of_transformers_with_its_own_cache(tmp_path: Any, scale: float) -> None:
    theirs, ours = twins(tmp_path)
    prompt, negative = torch.tensor([[5, 3, 7, 11]]), torch.tensor([[6, 2]])
    processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(
        scale, theirs, unconditional_ids=negative
    )
    guidance = co.Guidance(ours, scale=scale, prompt=negative)
    text = prompt
    for _ in range(9):
        with torch.no_grad():
            logits = theirs(text).logits[:, -1]
            expected = processor(text, logits)
            ended = torch.zeros(1, dtype=torch.bool)
            got = guidance(ours(text)[:, -1], History(text, 4, None, ended))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)
        text = torch.cat([text, got.argmax(-1, keepdim=True)], 1)
    guided = generate(
        ours,
        prompt,
        tokens=9,
        pick=sample(
            generator=generator(0),
            temperature=0.0,
            warp=co.Guidance(ours, scale=scale, prompt=negative),
        ),
    )
    assert torch.equal(guided, text[:, 4:])


def test_experts_follow_the_text_and_cancel_when_they_agree() -> None:
    model, one, two = decoder(0), decoder(1), decoder(2)
    ids = torch.tensor([[4, 9, 2], [1, 1, 6]])
    ended = torch.zeros(2, dtype=torch.bool)
    z = model(ids)[:, -1]
    got = co.Experts(one, two, strength=1.7)(z, History(ids, 3, None, ended))
    torch.testing.assert_close(got, z + 1.7 * (one(ids)[:, -1] - two(ids)[:, -1]))
    same = co.Experts(one, one, strength=1.7)(z, History(ids, 3, None, ended))
    torch.testing.assert_close(same, z)


def test_a_classifier_that_knows_gives_the_conditional() -> None:
    z = normal(2, V)
    ids = torch.tensor([[4, 9, 2], [1, 1, 6]])
    table = normal(V, seed=4).sigmoid()
    guide = co.ClassifierGuidance(lambda texts: table[texts[:, -1]].log(), k=V)
    ended = torch.zeros(2, dtype=torch.bool)
    got = guide(z, History(ids, 3, None, ended)).softmax(-1)
    wanted = z.softmax(-1) * table
    torch.testing.assert_close(got, wanted / wanted.sum(-1, keepdim=True))
    few = co.ClassifierGuidance(lambda texts: table[texts[:, -1]].log(), k=3)
    cut = few(z, History(ids, 3, None, ended))
    assert (cut > -math.inf).sum(-1).tolist() == [3, 3]
    assert torch.equal(cut.isfinite(), (z >= z.topk(3).values[:, -1:]))


def test_models_of_classes_make_a_classifier() -> None:
    logs, prior = normal(4, 3), torch.tensor([0.2, 0.5, 0.3])
    joint = logs.exp() * prior.double()
    wanted = joint / joint.sum(-1, keepdim=True)
    torch.testing.assert_close(co.class_log_probs(logs, prior.double()).exp(), wanted)


def test_a_text_that_no_class_can_write_stays_out() -> None:
    never = -math.inf
    both = torch.tensor([[0.3, 0.1], [never, never], [never, 0.2]]).log_softmax(0)
    told = co.class_log_probs(both)
    assert torch.equal(told.isinf(), torch.tensor([[False, False], [True, True], [True, False]]))
    assert not bool(told.isnan().any())
    law = co.bayes_logits(torch.zeros(3), told[:, 1], power=2.0).softmax(0)
    assert float(law[1]) == 0.0
    assert float(law.sum()) == pytest.approx(1.0)


def test_a_steering_vector_moves_the_stream_after_its_block_once() -> None:
    model, v = decoder(), torch.randn(12, generator=generator(3))
    ids = torch.tensor([[4, 9, 2, 5]])
    with watch(model, read=["blocks.0.stream"]) as seen:
        model(ids)
    before = seen["blocks.0.stream"]
    # Contexts nest, the outer one first: read again within to see what is handed on.
    with (
        co.steer(model, "blocks.0.stream", v, strength=0.7),
        watch(model, read=["blocks.0.stream"]) as seen,
    ):
        steered = model(ids)
    torch.testing.assert_close(seen["blocks.0.stream"], before + 0.7 * v)
    assert not torch.allclose(steered, model(ids))
    with (
        co.steer(model, "blocks.0.stream", v, strength=0.7, last=True),
        watch(model, read=["blocks.0.stream"]) as seen,
    ):
        model(ids)
    moved = seen["blocks.0.stream"] - before
    torch.testing.assert_close(moved[0, -1], 0.7 * v)
    assert float(moved[0, :-1].detach().abs().max()) == 0.0
    with co.steer(model, "blocks.0.stream", v, strength=0.0):
        torch.testing.assert_close(model(ids), model(ids))


def test_steering_is_a_difference_of_means_of_several() -> None:
    up, down = normal(5, 7), normal(3, 7, seed=1)
    torch.testing.assert_close(co.steering_vector(up, down), up.mean(0) - down.mean(0))


def test_a_pplm_step_gains_the_squared_gradient_to_first_order() -> None:
    head, probe = normal(7, V), normal(7, seed=5)
    h, delta = normal(3, 7, seed=6), 0.1 * normal(3, 7, seed=7)
    parts: dict[str, Any] = {
        "attribute": lambda x: torch.nn.functional.logsigmoid(x @ probe),
        "head": lambda x: x @ head,
        "kl_weight": 0.3,
    }
    before = co.pplm_objective(h, delta, **parts)
    free = delta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(co.pplm_objective(h, free, **parts).sum(), free)
    for size in (1e-4, 1e-5):
        after = co.pplm_objective(h, co.pplm_step(h, delta, size=size, **parts), **parts)
        gain = (after - before) / size
        torch.testing.assert_close(gain, slope.square().sum(-1), rtol=3e3 * size, atol=0.0)
    assert not delta.requires_grad


def test_a_token_that_the_head_forbids_is_no_part_of_the_price() -> None:
    head, h = normal(7, 5), normal(2, 7, seed=6)
    delta = 0.1 * normal(2, 7, seed=7)
    probe = normal(7, seed=5)

    def forbidding(x: Tensor) -> Tensor:
        never = torch.tensor([False, True, False, False, False])
        return (x @ head).masked_fill(never, -math.inf)

    def without(x: Tensor) -> Tensor:
        return (x @ head)[:, [0, 2, 3, 4]]

    moved = []
    for read in (forbidding, without):
        parts: dict[str, Any] = {"attribute": lambda x: x @ probe, "head": read, "kl_weight": 0.3}
        moved.append(co.pplm_objective(h, delta, **parts))
        moved.append(co.pplm_step(h, delta, size=0.4, **parts))
    torch.testing.assert_close(moved[0], moved[2])
    torch.testing.assert_close(moved[1], moved[3])


def test_calibration_bears_labels_that_are_all_but_impossible() -> None:
    # In float32 the probability e^-200 is 0: its logarithm is not taken of that.
    cf = torch.tensor([[0.0, -200.0], [0.0, -201.0]])
    p = torch.tensor([0.0, -200.0])
    told = co.calibrate(p, cf)
    wanted = co.calibrate(p.double(), cf.double())
    torch.testing.assert_close(told.double(), wanted, rtol=1e-4, atol=1e-4)
    assert float(told[1].exp()) == pytest.approx(1 / (1 + (1 + math.exp(-1)) / 2), rel=1e-3)


def test_calibration_makes_the_content_free_input_undecided() -> None:
    cf = normal(1, 3)
    even = co.calibrate(cf, cf).exp()
    torch.testing.assert_close(even, torch.full((1, 3), 1 / 3, dtype=torch.float64))
    p, q = normal(5, 3).softmax(-1), normal(2, 3, seed=1).softmax(-1)
    wanted = p / q.mean(0)
    got = co.calibrate(p.log(), q.log()).exp()
    torch.testing.assert_close(got, wanted / wanted.sum(-1, keepdim=True))


def test_prompts_of_examples_do_not_end_in_a_blank() -> None:
    made = co.few_shot([("a", "x"), ("b", "y")], "c")
    assert made == "Input: a\nLabel: x\n\nInput: b\nLabel: y\n\nInput: c\nLabel:"
    for template in ("{label} {input}", "{input}", "{input} {label} or {label}"):
        with pytest.raises(ValueError, match="at its end"):
            co.few_shot([], "a", template=template)


def test_linear_attention_is_one_step_of_gradient_descent() -> None:
    x, y, start = normal(11, 5), normal(11, 3, seed=1), normal(5, 3, seed=2)
    question = normal(5, seed=3)
    free = start.clone().requires_grad_()
    loss = 0.5 * (x @ free - y).square().sum(-1).mean()
    (slope,) = torch.autograd.grad(loss, free)
    after = question @ (start - 0.4 * slope)
    weights = co.gradient_step_weights(start, size=0.4, examples=11)
    asked = torch.cat([question, -question @ start])
    got = co.linear_attention(torch.cat([x, y], 1), asked, weights)
    torch.testing.assert_close(got[:5], question, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[5:] + 2 * question @ start, after, rtol=1e-12, atol=1e-12)


def test_a_mixture_of_tasks_is_bayes() -> None:
    prior, like, law = normal(4).softmax(-1), normal(4, seed=1), normal(4, 5, seed=2).softmax(-1)
    posterior = prior * like.exp()
    posterior = posterior / posterior.sum()
    got = co.mixture_prediction(prior.log(), like, law.log()).exp()
    torch.testing.assert_close(got, posterior @ law)


def test_examples_that_no_task_explains_have_no_prediction(own_checks: None) -> None:
    never = torch.full((2,), -math.inf)
    with pytest.raises(ValueError, match="no task explains"):
        co.mixture_prediction(torch.zeros(2), never, torch.zeros(2, 3))


def test_settings_out_of_range_are_refused(own_checks: None) -> None:
    z = torch.zeros(2, V)
    cases: list[tuple[str, Any]] = [
        ("with_condition", lambda: co.guided_logits(z, z[:, :3], 1.0)),
        ("scale", lambda: co.guided_logits(z, z, math.inf)),
        ("strength", lambda: co.experts_logits(z, z, z, math.nan)),
        ("power", lambda: co.bayes_logits(z, z, power=-1.0)),
        ("k must be", lambda: co.ClassifierGuidance(lambda t: t, k=0)),
        ("several sites", lambda: co.steer(decoder(), "*.stream", z[0], strength=1.0).__enter__()),
        ("no site", lambda: co.steer(decoder(), "stream", z[0], strength=1.0).__enter__()),
        ("unwished", lambda: co.steering_vector(z, z[:, :3])),
        ("content_free", lambda: co.calibrate(z, z[:, :3])),
        ("probability 0", lambda: co.calibrate(z[0, :2], torch.tensor([[0.0, -math.inf]]))),
        ("prior must", lambda: co.class_log_probs(z[:, :2], torch.tensor([1.5, -0.5]))),
        ("prior must", lambda: co.class_log_probs(z[:, :2], torch.zeros(2))),
        (
            "shape of one token",
            lambda: co.linear_attention(
                normal(3, 4),
                normal(5),
                co.gradient_step_weights(normal(2, 2), size=1.0, examples=3),
            ),
        ),
    ]
    for why, call in cases:
        with pytest.raises(ValueError, match=why):
            call()


def test_inputs_stay_as_they_were_and_meta_tensors_will_do() -> None:
    for where in ("cpu", "meta"):
        z, phi = normal(3, 7).to(where), normal(7, 2).to(where)
        w = normal(2).to(where)
        results = [
            co.tilt(z, phi, w),
            co.guided_logits(z, z, 1.5),
            co.experts_logits(z, z, z, 2.0),
            co.bayes_logits(z, z),
            co.class_log_probs(z),
            co.calibrate(z, z),
            co.steering_vector(z, z),
            co.mixture_prediction(z[0], z, normal(3, 7, 5).to(where)),
        ]
        assert all(r.device.type == where for r in results)
    z = normal(3, 7)
    kept = z.clone()
    co.guided_logits(z, z, 1.5)
    co.calibrate(z, z)
    assert torch.equal(z, kept)
