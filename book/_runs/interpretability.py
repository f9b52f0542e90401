"""Explain a classifier of Bible verses in ten ways, and test each explanation.

About 15 minutes of one core. MiniLM with a linear head says whether a verse of the King James
Bible is from the Old or the New Testament. For each of three seeds a head is fitted to 2,400 verses
and 40 others are explained; then small classifiers with one layer of attention are trained on the
same verses. A column of numbers is one string, with spaces between them.
"""

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from companion import data
from companion.core import generator, watch
from companion.foundations.optimization import Adam
from companion.models import TextEncoder, minilm
from companion.pretraining.transfer import linear_probe, pool
from companion.transformer.multi_head import attention_layers
from companion.trust import interpretability as it

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

SEEDS = (0, 1, 2)
RATIOS = (0.1, 0.2, 0.5)
ORDERS = 6
SHORT, LONG = 50, 110  # characters of a verse


def column(values: Tensor | Sequence[float], digits: int = 4) -> str:
    """Numbers in one string."""
    listed = values.tolist() if isinstance(values, Tensor) else values
    return " ".join(f"{value:.{digits}f}".rstrip("0").rstrip(".") or "0" for value in listed)


def verses() -> tuple[list[str], list[str]]:
    """Short verses of either Testament."""
    all_verses = data.bible_verses("kjv")
    books = list(dict.fromkeys(verse.book for verse in all_verses))
    new = set(books[books.index("Matthew") :])
    short = [verse for verse in all_verses if SHORT <= len(verse.text) <= LONG]
    return (
        [verse.text for verse in short if verse.book not in new],
        [verse.text for verse in short if verse.book in new],
    )


def sample(number: int, g: torch.Generator) -> tuple[list[str], Tensor]:
    """As many verses of either Testament, and which it is; half of them first."""
    texts: list[str] = []
    for side in verses():
        picked = torch.randperm(len(side), generator=g)[:number].tolist()
        texts += [side[i] for i in picked]
    order = torch.randperm(2 * number, generator=g)
    return [texts[i] for i in order.tolist()], (order >= number).long()


class Explained:
    """One verse, the score of the class that was said, and what stands for an absent token."""

    def __init__(self, encoder: TextEncoder, weight: Tensor, bias: float, text: str) -> None:
        self.model, self.weight, self.bias = encoder.model, weight, bias
        self.ids, self.real = encoder.tokenize([text])
        self.mask_id = encoder.tokenizer.token_to_id("[MASK]")
        n = self.ids.shape[1]
        self.inner = slice(1, n - 1)  # without the tokens that open and close
        table = encoder.model.tokens.weight.detach()
        self.x = table[self.ids[0]]
        self.baseline = self.x.clone()
        self.baseline[self.inner] = table[self.mask_id]
        with torch.no_grad():
            told = float(self._logit(self.x[None]))
        self.sign = 1.0 if told >= 0 else -1.0
        self.said = int(told >= 0)

    def _logit(self, embeddings: Tensor) -> Tensor:
        real = self.real.expand(len(embeddings), -1)
        hidden = self.model(None, embeddings=embeddings, real=real)
        return pool(hidden, real) @ self.weight + self.bias

    def score(self, embeddings: Tensor) -> Tensor:
        return self.sign * self._logit(embeddings)

    def value(self, keep: Tensor) -> Tensor:
        whole = torch.ones(len(keep), len(self.x), dtype=torch.bool)
        whole[:, self.inner] = keep
        return self.score(torch.where(whole[:, :, None], self.x, self.baseline))

    @property
    def players(self) -> int:
        return len(self.x) - 2

    def maps(self) -> dict[str, Tensor]:
        """What attention alone says: means over the tokens, which the mean pooling weighs alike."""
        with torch.no_grad(), watch(self.model, read=["*.weights", "*.values"]) as seen:
            self.model(self.ids)
        weights = torch.stack([A for name, A in seen.items() if name.endswith("weights")])
        last = attention_layers(self.model)[-1]
        values = seen[f"blocks.{len(self.model.blocks) - 1}.attention.values"]
        norms = it.value_norms(weights[-1], values, last.output_matrix, join=True)
        return {
            "attention": weights[-1].mean((0, 1)).mean(0)[self.inner],
            "rollout": it.rollout(weights)[0].mean(0)[self.inner],
            "norms": norms[0].mean(0)[self.inner].detach(),
        }

    def gradients(self) -> dict[str, Tensor]:
        x = self.x[None]
        slope = it.saliency(self.score, x)[0].norm(dim=1)
        times = it.gradient_times_input(self.score, x, baseline=self.baseline)[0].sum(1)
        return {"saliency": slope[self.inner], "gradient_input": times[self.inner]}

    def others(self, g: torch.Generator) -> dict[str, Tensor]:
        path = it.integrated_gradients(self.score, self.x, self.baseline, steps=16)
        n = self.players
        alone = ~torch.eye(n, dtype=torch.bool)
        with torch.no_grad():
            whole = self.value(torch.ones(1, n, dtype=torch.bool))
            leave = whole - self.value(alone)
        drawn = it.sampled_shapley(
            self.value, n, orders=ORDERS, generator=g, antithetic=True, batch_size=64
        )
        return {
            "integrated": path.values.sum(1)[self.inner],
            "leave_one_out": leave,
            "shapley": drawn.values.float(),
        }


def explain(encoder: TextEncoder, verse: Explained, g: torch.Generator) -> dict[str, Any]:
    """All attributions of a verse, and what erasing by each does."""
    scores = {**verse.maps(), **verse.gradients(), **verse.others(g)}
    erased: dict[str, list[float]] = {}
    for name, score in scores.items():
        found = it.erasure(verse.value, score, ratios=RATIOS)
        erased[name] = [*found.comprehensiveness.tolist(), *found.sufficiency.tolist()]
    chance = it.random_erasure(verse.value, verse.players, draws=8, generator=g, ratios=RATIOS)
    erased["random"] = [
        *chance.comprehensiveness.mean(0).tolist(),
        *chance.sufficiency.mean(0).tolist(),
    ]
    return {"scores": scores, "erased": erased}


def agreement(all_scores: list[dict[str, Tensor]]) -> dict[str, str]:
    """Kendall's tau of each pair of methods, verse by verse."""
    names = list(all_scores[0])
    return {
        f"{a} {b}": column([float(it.kendall_tau(s[a].abs(), s[b].abs())) for s in all_scores])
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }


def redrawn(encoder: TextEncoder, weight: Tensor, depth: int, g: torch.Generator) -> Any:
    """The classifier with its head and its top blocks filled with random numbers."""
    made = copy.deepcopy(encoder.model)
    with torch.no_grad():
        for block in list(made.blocks)[len(made.blocks) - depth :]:
            for parameter in block.parameters():
                drawn = torch.randn(parameter.shape, generator=g)
                parameter.copy_(parameter.mean() + parameter.std() * drawn)
    head = torch.randn(weight.shape, generator=g) * weight.std()
    return TextEncoder(made, encoder.tokenizer), head


def sanity(
    encoder: TextEncoder, weight: Tensor, bias: float, texts: list[str], g: torch.Generator
) -> dict[str, list[str]]:
    """How alike maps are when the model is made random from the top down."""
    found: dict[str, list[str]] = {}
    for depth in range(len(encoder.model.blocks) + 1):
        other, head = redrawn(encoder, weight, depth, g)
        taus: dict[str, list[float]] = {}
        for text in texts:
            true, wrong = Explained(encoder, weight, bias, text), Explained(other, head, bias, text)
            wrong.sign = true.sign
            a = {**true.maps(), **true.gradients()}
            b = {**wrong.maps(), **wrong.gradients()}
            for name in a:
                tau = float(it.kendall_tau(a[name].abs(), b[name].abs()))
                taus.setdefault(name, []).append(tau)
        for name, values in taus.items():
            found.setdefault(name, []).append(column(values))
    return found


class Attentive(nn.Module):
    """One layer of additive attention over vectors of tokens, and a linear head."""

    def __init__(self, dim: int, hidden: int, g: torch.Generator) -> None:
        super().__init__()
        self.way = nn.Parameter(torch.randn(dim, hidden, generator=g) / dim**0.5)
        self.query = nn.Parameter(torch.randn(hidden, generator=g) / hidden**0.5)
        self.head = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(()))
        self.uniform = False

    def attention(self, h: Tensor, real: Tensor) -> Tensor:
        e = torch.zeros_like(real, dtype=h.dtype) if self.uniform else (h @ self.way).tanh()
        e = e if self.uniform else e @ self.query
        return e.masked_fill(~real, -torch.inf).softmax(-1)

    def parts(self, h: Tensor) -> Tensor:
        return h @ self.head

    def forward(self, h: Tensor, real: Tensor) -> Tensor:
        return (self.attention(h, real) * self.parts(h)).sum(-1) + self.bias


def states(encoder: TextEncoder, texts: list[str], contextual: bool) -> tuple[Tensor, Tensor]:
    """Vectors of tokens: rows of the table of embeddings, or what MiniLM makes of them."""
    ids, real = encoder.tokenize(texts)
    with torch.no_grad():
        table = encoder.model.tokens.weight
        if not contextual:
            h = table[ids]
            return h / h.std(), real
        made = [
            encoder.model(i, real=r) for i, r in zip(ids.split(50), real.split(50), strict=True)
        ]
    h = torch.cat(made)
    return h / h[real].std(), real


def train_attentive(
    h: Tensor, real: Tensor, y: Tensor, uniform: bool, g: torch.Generator
) -> Attentive:
    model = Attentive(h.shape[-1], 32, g)
    model.uniform = uniform
    learns = [p for n, p in model.named_parameters() if not (uniform and n in ("way", "query"))]
    rule = Adam(learns, lr=3e-3)
    for _ in range(300):
        i = torch.randint(len(y), (64,), generator=g)
        told = model(h[i], real[i])
        loss = nn.functional.binary_cross_entropy_with_logits(told, y[i].float())
        rule.zero_grad()
        (loss + 1e-3 * model.head.square().sum()).backward()
        rule.step()
    return model


def divergence(p: Tensor, q: Tensor) -> float:
    """Jensen and Shannon's, in nats."""
    m = (p + q) / 2
    return float((torch.xlogy(p, p / m) + torch.xlogy(q, q / m)).sum() / 2)


def attentive(
    encoder: TextEncoder,
    train: tuple[list[str], Tensor],
    test: tuple[list[str], Tensor],
    g: torch.Generator,
) -> dict[str, Any]:
    """Learned and uniform attention, over vectors with and without a context."""
    results: dict[str, Any] = {}
    for kind in ("static", "contextual"):
        contextual = kind == "contextual"
        h, real = states(encoder, train[0], contextual)
        h_test, real_test = states(encoder, test[0], contextual)
        found: dict[str, Any] = {}
        for uniform in (True, False):
            model = train_attentive(h, real, train[1], uniform, g)
            with torch.no_grad():
                said = model(h_test, real_test) > 0
            right = float((said.long() == test[1]).float().mean())
            found["accuracy_uniform" if uniform else "accuracy"] = round(right, 4)
        taus, taus_left, moved, apart, top, top_after = [], [], [], [], [], []
        for k in range(40):
            n = int(real_test[k].sum())
            vectors = h_test[k, :n]
            whole = torch.ones(1, n, dtype=torch.bool)
            alpha = model.attention(vectors[None], whole)[0].detach()
            slope, left = _importances(encoder, model, test[0][k], contextual, h, vectors)
            inner = slice(1, n - 1)
            taus.append(float(it.kendall_tau(alpha[inner], slope[inner])))
            taus_left.append(float(it.kendall_tau(alpha[inner], left[inner])))
            parts = model.parts(vectors).detach()
            p = torch.sigmoid((alpha * parts).sum() + model.bias.detach())
            shuffled = torch.stack([alpha[torch.randperm(n, generator=g)] for _ in range(50)])
            q = torch.sigmoid(shuffled @ parts + model.bias.detach())
            moved.append(float((q - p).abs().median()))
            other = it.alternative_attention(alpha[None].double(), parts[:, None].double())[0]
            apart.append(divergence(alpha.double(), other))
            same = float(((other - alpha.double()) @ parts.double()).abs())
            assert same < 1e-6, same
            top.append(float(alpha.max()))
            top_after.append(float(other[alpha.argmax()]))
        found |= {
            "tau_gradient": column(taus),
            "tau_leave_one_out": column(taus_left),
            "moved": column(moved),
            "apart": column(apart),
            "top": column(top),
            "top_after": column(top_after),
        }
        results[kind] = found
    return results


def _importances(
    encoder: TextEncoder,
    model: Attentive,
    text: str,
    contextual: bool,
    h: Tensor,
    vectors: Tensor,
) -> tuple[Tensor, Tensor]:
    """Norms of gradients by the embeddings of tokens, and leave-one-out by deletion."""
    ids, _ = encoder.tokenize([text])
    table = encoder.model.tokens.weight.detach()
    scale = float(
        (encoder.model(ids)[0] if contextual else table[ids[0]]).detach().norm() / vectors.norm()
    )

    def score(embeddings: Tensor) -> Tensor:
        states = encoder.model(None, embeddings=embeddings) if contextual else embeddings
        real = torch.ones(states.shape[:2], dtype=torch.bool)
        return model(states / scale, real)

    slope = it.saliency(score, table[ids])[0].norm(dim=1)
    n = ids.shape[1]
    rest = torch.stack([torch.cat([ids[0, :i], ids[0, i + 1 :]]) for i in range(n)])
    with torch.no_grad():
        whole = torch.sigmoid(score(table[ids]))
        left = (whole - torch.sigmoid(score(table[rest]))).abs()
    return slope, left


def main(argv: list[str] | None = None) -> None:
    """Explain, test, and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=1200, help="verses of either Testament")
    parser.add_argument("--explain", type=int, default=40, help="verses for each seed")
    parser.add_argument("--sane", type=int, default=12, help="verses of the sanity check")
    asked = parser.parse_args(argv)
    begin, cpu = time.perf_counter(), time.process_time()
    torch.set_num_threads(1)
    encoder = minilm()
    for parameter in encoder.model.parameters():
        parameter.requires_grad_(False)
    results: dict[str, Any] = {"ratios": list(RATIOS), "orders": ORDERS, "seeds": []}
    for seed in SEEDS:
        g = generator(seed)
        texts, labels = sample(asked.train + 200, g)
        train = (texts[: 2 * asked.train], labels[: 2 * asked.train])
        test = (texts[2 * asked.train :], labels[2 * asked.train :])
        features = encoder.embed(train[0], normalize=False)
        probe = linear_probe(features, train[1], l2=1e-2)
        weight = (probe.weight[:, 1] - probe.weight[:, 0]).float()
        bias = float(probe.bias[1] - probe.bias[0])
        unseen = encoder.embed(test[0], normalize=False)
        said = (unseen @ weight + bias >= 0).long()
        right = float((said == test[1]).float().mean())
        made, erased = [], []
        for text in test[0][: asked.explain]:
            verse = Explained(encoder, weight, bias, text)
            found = explain(encoder, verse, g)
            made.append(found["scores"])
            erased.append(found["erased"])
        kept: dict[str, Any] = {
            "accuracy": round(right, 4),
            "held_out": len(test[0]),
            "erased": {
                name: [column(one) for one in zip(*[e[name] for e in erased], strict=True)]
                for name in erased[0]
            },
            "tau": agreement(made),
        }
        if seed == 0:
            kept["weight"], kept["bias"] = column(weight, 5), round(bias, 5)
        print(f"seed {seed}: explained, {time.process_time() - cpu:.0f} s", flush=True)
        kept["sanity"] = sanity(encoder, weight, bias, test[0][: asked.sane], g)
        print(f"seed {seed}: sane, {time.process_time() - cpu:.0f} s", flush=True)
        kept["attentive"] = attentive(encoder, train, test, g)
        print(f"seed {seed}: attentive, {time.process_time() - cpu:.0f} s", flush=True)
        results["seeds"].append(kept)
    results["cpu_seconds"] = round(time.process_time() - cpu, 1)
    store("interpretability", results, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
