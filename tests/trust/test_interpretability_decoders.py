"""Lenses, direct logits, patching and induction, on small decoders whose parts are known."""

import pytest
import torch
from torch import Tensor, nn

from companion.core import HasSites, watch
from companion.transformer.block import Decoder, Encoder, Learned, TransformerConfig
from companion.transformer.multi_head import MultiHeadAttention
from companion.trust.interpretability import (
    Translator,
    activation_patching,
    attribution_patching,
    direct_logits,
    fit_translator,
    induction_scores,
    lens_logits,
    logit_lens,
    patching_effect,
    tune_translator,
)

IDS = torch.tensor([[3, 7, 1, 9, 4], [5, 2, 8, 8, 1]])


def draw(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def decoder(**changes: object) -> Decoder:
    config = {"vocab": 11, "dim": 12, "layers": 3, "heads": 3, "ff_dim": 17, "context": 23}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Decoder(TransformerConfig(**{**config, **changes})).double().eval()
        with torch.no_grad():  # generic numbers where a new model has ones and zeros
            for parameter in made.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


KINDS = [
    {},
    {"norm": "rms", "attention_bias": False, "ff_bias": False, "kv_heads": 1},
    {"norm": "rms", "logit_scale": 0.3, "activation": "swiglu", "tied": False},
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_lens_is_the_model(kind: dict) -> None:
    model = decoder(**kind)
    read = logit_lens(model, IDS)
    assert read.shape == (4, 2, 5, 11)
    torch.testing.assert_close(read[-1], model(IDS).detach())
    part = logit_lens(model, IDS, depths=[2, 0], last=2)
    torch.testing.assert_close(part, read[[2, 0], :, -2:])


def test_each_state_is_scaled_anew() -> None:
    model = decoder(norm="rms")
    h = draw(4, 12)
    # A cached scale would make short states look unsure.
    torch.testing.assert_close(
        lens_logits(model, h), lens_logits(model, 100 * h), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("kind", KINDS)
def test_direct_logits_add_up_and_are_linear_in_each_head(kind: dict) -> None:
    model = decoder(**kind)
    token, other = torch.tensor([6, 0]), torch.tensor([2, 9])
    parts = direct_logits(model, IDS, token=token, other=other)
    z = model(IDS)[:, -1].detach()
    rows = torch.arange(2)
    torch.testing.assert_close(parts.total, z[rows, token] - z[rows, other])
    summed = parts.embedded + parts.heads.sum((0, 2)) + parts.feed_forward.sum(0) + parts.biases
    torch.testing.assert_close(summed, parts.total)
    # The last layer's head, through the last norm with its scale held: by hand.
    with torch.no_grad(), watch(model, read=["blocks.2.*"]) as seen:
        model(IDS)
    wrote = seen["blocks.2.attention.heads"][:, 1, -1] @ model.blocks[2].attention.output_matrix[1]
    end = seen["blocks.2.stream"][:, -1]
    if model.config.norm == "layer":
        wrote, end = wrote - wrote.mean(-1, keepdim=True), end - end.mean(-1, keepdim=True)
    scaled = wrote / (end.square().mean(-1, keepdim=True) + model.config.norm_eps).sqrt()
    moved = (scaled * model.final_norm.weight) @ model.head.weight.T * model.config.logit_scale
    torch.testing.assert_close(
        parts.heads[2, :, 1], (moved[rows, token] - moved[rows, other]).detach()
    )


def test_a_translator_begins_as_the_identity_and_is_fitted_exactly() -> None:
    h = draw(40, 5)
    torch.testing.assert_close(Translator(5).double()(h), h)
    final = h @ draw(5, 5, seed=1) + draw(5, seed=2)
    torch.testing.assert_close(
        fit_translator(h, final, l2=1e-12)(h).detach(), final, rtol=1e-6, atol=1e-6
    )
    # Against the normal equations with a column of ones.
    noisy = final + draw(40, 5, seed=3)
    ones = torch.cat([h, torch.ones(40, 1).double()], 1)
    penalty = 0.7 * torch.eye(6).double()
    penalty[-1] = 0
    want = torch.linalg.solve(ones.T @ ones / 40 + penalty, ones.T @ (noisy - h) / 40)
    made = fit_translator(h, noisy, l2=0.7)
    torch.testing.assert_close(made.weight.detach(), want[:-1])
    torch.testing.assert_close(made.bias.detach(), want[-1])


def test_tuning_lowers_the_divergence_and_leaves_the_model() -> None:
    model = decoder(norm="rms", tied=False)
    before = [p.detach().clone() for p in model.parameters()]
    h = draw(64, 12, seed=1)
    final = (h + 0.8 * h @ draw(12, 12, seed=2)).detach()
    lens = Translator(12).double()
    g = torch.Generator().manual_seed(0)
    losses = tune_translator(lens, model, h, final, steps=150, lr=0.02, batch_size=32, generator=g)
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert min(losses) >= 0
    for p, was in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, was)
        assert p.requires_grad
        assert p.grad is None
    assert all(p.grad is None for p in lens.parameters())


def test_tuning_is_adam_on_the_divergence_with_a_falling_rate() -> None:
    model = decoder(norm="rms", tied=False).requires_grad_(False)
    h, final = draw(40, 12, seed=1), draw(40, 12, seed=2)
    lens = Translator(12).double()
    losses = tune_translator(
        lens, model, h, final, steps=7, lr=0.02, generator=torch.Generator().manual_seed(3)
    )
    A = torch.zeros(12, 12, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    rule, g = torch.optim.Adam([A, b], lr=0.02), torch.Generator().manual_seed(3)
    for step in range(7):
        rule.param_groups[0]["lr"] = 0.02 * (7 - step) / 7
        some = torch.randint(40, (128,), generator=g)
        p = lens_logits(model, final[some]).log_softmax(-1)
        q = lens_logits(model, h[some] + h[some] @ A + b).log_softmax(-1)
        loss = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
        rule.zero_grad()
        loss.backward()
        rule.step()
        assert abs(losses[step] - float(loss.detach())) < 1e-10
    torch.testing.assert_close(lens.weight, A)
    torch.testing.assert_close(lens.bias, b)


@pytest.mark.usefixtures("own_checks")
def test_a_lens_needs_a_final_norm() -> None:
    with torch.random.fork_rng(devices=[]):
        post = Decoder(
            TransformerConfig(
                vocab=7, dim=6, layers=1, heads=3, ff_dim=5, context=9, norm_place="post"
            )
        )
    with pytest.raises(ValueError, match="no final norm"):
        lens_logits(post, torch.ones(1, 6))
    with pytest.raises(ValueError, match="no final norm"):
        logit_lens(post, torch.tensor([[1, 2]]))
    with pytest.raises(ValueError, match="no final norm"):
        direct_logits(post, torch.tensor([[1, 2]]), token=torch.ones(1).long(), other=IDS[:1, 0])
    with pytest.raises(ValueError, match="no final norm"):
        tune_translator(
            Translator(6),
            post,
            torch.ones(2, 6),
            torch.ones(2, 6),
            steps=1,
            generator=torch.Generator(),
        )
    model = decoder()
    with pytest.raises(ValueError, match="12 wide"):
        lens_logits(model, draw(2, 11))
    with pytest.raises(ValueError, match="depth must be from 0 to 3, got 4"):
        logit_lens(model, IDS, depths=[4])
    with pytest.raises(ValueError, match="last"):
        logit_lens(model, IDS, last=6)
    with pytest.raises(ValueError, match="token must have shape"):
        direct_logits(model, IDS, token=torch.tensor([1]), other=torch.tensor([1]))
    with pytest.raises(ValueError, match="l2 must lie"):
        fit_translator(draw(3, 2), draw(3, 2), l2=0.0)


class Sums(HasSites):
    """Three pieces of four components, and a metric that is a sum of a product and a square."""

    sites = ("pieces",)

    def __init__(self) -> None:
        super().__init__()
        self.way = nn.Parameter(draw(5, 12))

    def forward(self, x: Tensor) -> Tensor:
        h = self.site("pieces", (x @ self.way).view(-1, 3, 4))
        return h[:, 0].sum() * h[:, 1].sum() + h[:, 2].square().sum()


def test_patching_goes_from_clean_into_corrupt() -> None:
    model, clean, corrupt = Sums(), draw(1, 5, seed=1), draw(1, 5, seed=2)
    made = activation_patching(model, model, clean, corrupt, sites=["pieces"])
    c, r = ((x @ model.way.detach()).view(3, 4) for x in (clean, corrupt))

    def m(h: list[Tensor]) -> Tensor:
        return h[0].sum() * h[1].sum() + h[2].square().sum()

    for piece in range(3):
        mixed = [c[i] if i == piece else r[i] for i in range(3)]
        torch.testing.assert_close(made.patched[0, piece], m(mixed))
    torch.testing.assert_close(made.clean, m(list(c)))
    torch.testing.assert_close(made.corrupt, m(list(r)))
    torch.testing.assert_close(
        made.effect, (made.patched - made.corrupt) / (made.clean - made.corrupt)
    )
    some = activation_patching(model, model, clean, corrupt, sites=["pieces"], pieces=[2])
    torch.testing.assert_close(some.patched[0, 0], made.patched[0, 2])


def test_the_scale_of_an_effect() -> None:
    found = patching_effect(torch.tensor([-2.0, 1.0, 3.0]), torch.tensor(3.0), torch.tensor(-2.0))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.6, 1.0]))


@pytest.mark.parametrize("frozen", [False, True])
def test_the_estimate_is_the_slope(frozen: bool) -> None:
    model, clean, corrupt = Sums(), draw(1, 5, seed=1), draw(1, 5, seed=2)
    model.requires_grad_(not frozen)
    made = attribution_patching(model, model, clean, corrupt, sites=["pieces"])
    c, r = ((x @ model.way.detach()).view(3, 4) for x in (clean, corrupt))
    d = c - r
    want = torch.stack([d[0].sum() * r[1].sum(), d[1].sum() * r[0].sum(), 2 * (d[2] * r[2]).sum()])
    torch.testing.assert_close(made.patched[0] - made.corrupt, want)
    assert model.way.grad is None
    # Products are linear in each factor, so only the square differs from the exact patch.
    exact = activation_patching(model, model, clean, corrupt, sites=["pieces"])
    torch.testing.assert_close(made.patched[0, :2], exact.patched[0, :2])
    assert abs(float(made.patched[0, 2] - exact.patched[0, 2])) > 1e-3


@pytest.mark.parametrize("frozen", [False, True])
def test_along_a_way_the_gradient_is_a_mean(frozen: bool) -> None:
    model, clean, corrupt = Sums(), draw(1, 5, seed=1), draw(1, 5, seed=2)
    model.requires_grad_(not frozen)
    made = attribution_patching(
        model, model, clean, corrupt, sites=["pieces"], along="pieces", steps=1
    )
    c, r = ((x @ model.way.detach()).view(3, 4) for x in (clean, corrupt))
    # The metric is of degree two, so that its mean gradient is the one in the middle.
    d, mid = c - r, (c + r) / 2
    want = torch.stack(
        [d[0].sum() * mid[1].sum(), d[1].sum() * mid[0].sum(), 2 * (d[2] * mid[2]).sum()]
    )
    torch.testing.assert_close(made.patched[0] - made.corrupt, want)
    torch.testing.assert_close(made.effect.sum(), torch.tensor(1.0).double())
    assert model.way.grad is None


@pytest.mark.parametrize("frozen", [False, True])
def test_heads_along_the_embeddings_of_a_decoder(frozen: bool) -> None:
    model = decoder().requires_grad_(not frozen)
    clean, corrupt = IDS[:1], torch.tensor([[3, 2, 1, 9, 4]])

    def metric(ids: Tensor) -> Tensor:
        z = model(ids)[:, -1]
        return (z[:, 6] - z[:, 2]).mean()

    made = attribution_patching(
        model, metric, clean, corrupt, sites=["embedded"], along="embedded", steps=24
    )
    assert abs(float(made.effect.sum()) - 1) < 1e-6
    assert float(made.effect[0, [0, 2, 3, 4]].abs().max()) == 0  # only one token differs
    # Heads, against slopes by finite differences at each point of the way.
    sites = ["blocks.0.attention.heads", "blocks.2.attention.heads"]
    with torch.no_grad():
        with watch(model, read=["embedded", *sites]) as seen:
            metric(clean)
        there = {name: seen[name] for name in seen}
        with watch(model, read=["embedded", *sites]) as seen:
            low = metric(corrupt)
        here = {name: seen[name] for name in seen}
    guess = attribution_patching(
        model, metric, clean, corrupt, sites=sites, along="embedded", steps=2
    )
    assert guess.patched.shape == (2, 3)
    want = 0.0
    for place in (0.5 - 12**-0.5, 0.5 + 12**-0.5):  # two points of Gauss and Legendre
        between = here["embedded"] + place * (there["embedded"] - here["embedded"])
        ends = []
        for step in (1e-5, -1e-5):

            def change(h: Tensor, step: float = step) -> Tensor:
                made = h.clone()
                made[:, 1] += step * (there[sites[0]] - here[sites[0]])[:, 1]
                return made

            def put(h: Tensor, between: Tensor = between) -> Tensor:
                return between

            with torch.no_grad(), watch(model, replace={"embedded": put, sites[0]: change}):
                ends.append(float(metric(corrupt)))
        want += (ends[0] - ends[1]) / 2e-5 / 2
    assert abs(float(guess.patched[0, 1] - low) - want) < 1e-7 * max(1, abs(want))


def test_heads_and_positions_of_a_decoder_are_patched() -> None:
    model = decoder()
    clean, corrupt = IDS[:1], torch.tensor([[3, 2, 1, 9, 4]])

    def metric(ids: Tensor) -> Tensor:
        z = model(ids)[:, -1]
        return (z[:, 6] - z[:, 2]).mean()

    streams = [f"blocks.{k}.stream" for k in range(3)]
    at = activation_patching(model, metric, clean, corrupt, sites=streams)
    assert at.patched.shape == (3, 5)
    # Before the tokens differ nothing changes; at the end of the last layer everything does.
    assert float(at.effect[:, 0].abs().max()) < 1e-12
    torch.testing.assert_close(at.effect[2, 4], torch.tensor(1.0).double())
    frozen = decoder().requires_grad_(False)
    small = 1e-4
    for one in (model, frozen):

        def own(ids: Tensor, one: Decoder = one) -> Tensor:
            z = one(ids)[:, -1]
            return (z[:, 6] - z[:, 2]).mean()

        heads = [f"blocks.{k}.attention.heads" for k in range(3)]
        guess = attribution_patching(one, own, clean, corrupt, sites=heads)
        assert guess.patched.shape == (3, 3)
        # Along the same line: a small step into the clean activations has this slope.
        with torch.no_grad(), watch(one, read=heads) as kept:
            one(clean)
        target = kept[heads[1]]

        def step(h: Tensor, target: Tensor = target) -> Tensor:
            made = h.clone()
            made[:, 2] += small * (target[:, 2] - h[:, 2])
            return made

        with torch.no_grad(), watch(one, replace={heads[1]: step}):
            moved = own(corrupt)
        slope = (moved - guess.corrupt) / small
        torch.testing.assert_close(guess.patched[1, 2] - guess.corrupt, slope, rtol=1e-2, atol=1e-5)


class Pairs(HasSites):
    """Two pieces of four components."""

    sites = ("pieces",)

    def forward(self, x: Tensor) -> Tensor:
        return self.site("pieces", x.repeat(1, 2)[:, :8].view(-1, 2, 4)).square().sum()


class Both(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[0](x) + self[1](x)


def test_patching_refuses_what_does_not_fit() -> None:
    model, x = Sums(), draw(1, 5)
    pair = Both(Sums(), Pairs())
    for call, said in (
        (lambda f: f(model, model, x, draw(2, 5), sites=["pieces"]), "clean"),
        (lambda f: f(model, lambda x: x, x, x, sites=["pieces"]), "one number"),
        (lambda f: f(model, model, x, x, sites="pieces"), "list of names"),
        (lambda f: f(model, model, x, x, sites=["pieces", "pieces"]), "each once"),
        (lambda f: f(model, model, x, x, sites=["*"]), "name each site in full"),
        (lambda f: f(model, model, x, x, sites=["absent"]), "there is no site"),
        (lambda f: f(pair, pair, x, x, sites=["0.pieces", "1.pieces"]), "one size of axis 1"),
    ):
        for f in (activation_patching, attribution_patching):
            with pytest.raises(ValueError, match=said):
                call(f)
    with pytest.raises(ValueError, match="piece must be from 0 to 2, got 3"):
        activation_patching(model, model, x, x, sites=["pieces"], pieces=[3])
    with pytest.raises(ValueError, match="does not depend"):
        attribution_patching(model, lambda x: model(x).detach(), x, x, sites=["pieces"])
    for options, said in (
        ({"steps": 0}, "steps must be 1 or more"),
        ({"along": "*"}, "name each site in full"),
        ({"along": "absent"}, "there is no site"),
    ):
        with pytest.raises(ValueError, match=said):
            attribution_patching(model, model, x, x, sites=["pieces"], **options)


def test_an_induction_head_by_construction_has_score_one() -> None:
    model = decoder(layers=2)
    ids = torch.tensor([[3, 7, 1, 9]]).repeat(1, 3)

    def pattern(A: Tensor) -> Tensor:
        made = A.clone()
        made[:, 1] = 0
        for t in range(A.shape[2]):
            made[:, 1, t, max(t - 4 + 1, 0)] = 1
        return made

    with watch(model, replace={"blocks.1.attention.weights": pattern}):
        found = induction_scores(model, ids, period=4)
    assert found.shape == (2, 3)
    assert float(found[1, 1]) == 1.0
    assert float(found[0].max()) < 1
    # One place off, the earlier occurrence itself, is no induction.
    with watch(model, replace={"blocks.1.attention.weights": lambda A: pattern(A).roll(-1, 3)}):
        assert float(induction_scores(model, ids, period=4)[1, 1]) == 0.0


def test_induction_needs_a_text_that_repeats() -> None:
    model = decoder()
    with pytest.raises(ValueError, match="must repeat with a period of 2"):
        induction_scores(model, IDS, period=2)
    with pytest.raises(ValueError, match="period must be from 2 to 4, got 5"):
        induction_scores(model, IDS, period=5)
    bare = nn.Sequential(nn.Linear(2, 3))
    with pytest.raises(ValueError, match="no heads"):
        induction_scores(bare, IDS[:1].repeat(1, 2), period=5)


def test_an_encoder_has_induction_scores_too() -> None:
    config = TransformerConfig(
        vocab=11, dim=12, layers=1, heads=3, ff_dim=13, context=17, positions=Learned()
    )
    with torch.random.fork_rng(devices=[]):
        encoder = Encoder(config).eval()
    assert induction_scores(encoder, IDS[:1].repeat(1, 2), period=5).shape == (1, 3)
    assert isinstance(encoder.blocks[0].attention, MultiHeadAttention)
