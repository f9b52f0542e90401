"""Fair classifiers of income, swapped pronouns in a corpus, and erasure inside of two models.

About ten minutes of one core. Four parts, each with three seeds: a frontier of accuracy and gap on
the census of 1994 (each seed splits the people anew); word vectors trained on news, and on the
same news with pronouns swapped as well; association tests of MiniLM's sentences before and after
erasure; and SmolLM2's pronouns after occupations, with gender erased inside, with steering, and
with self-debiasing. Counts and numbers are kept, and no text but templates.
"""

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from companion import data
from companion.core import generator, rand, watch
from companion.foundations.embeddings import Schedule, corpus, tokenize, train_sgns
from companion.generation.control import steer, steering_vector
from companion.knowledge.robustness import reverse_gradient
from companion.models import TextDecoder, minilm, smollm2
from companion.trust import debiasing as de
from companion.trust import fairness as fa

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

SEEDS = (0, 1, 2)

# The census -------------------------------------------------------------------------------------


def census(rows: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Features, incomes above 50,000 dollars, and sex (1 is male)."""
    parts = [data.adult("train"), data.adult("test")]
    names = ("workclass", "education", "marital_status", "occupation", "relationship", "race")
    names = (*names, "native_country")
    columns = []
    for name in ("age", "education_num", "capital_gain", "capital_loss", "hours_per_week"):
        value = torch.cat([part.number(name) for part in parts])
        value = value.log1p() if name.startswith("capital") else value
        columns.append((value - value.mean()) / value.std())
    for name in names:
        values = [*parts[0].category(name), *parts[1].category(name)]
        kinds = sorted({kind for kind, count in Counter(values).items() if count >= 50})
        columns += [torch.tensor([v == kind for v in values]).double() for kind in kinds]
    male = torch.cat([part.equals("sex", "Male") for part in parts]).long()
    rich = torch.cat([part.equals("income", ">50K") for part in parts]).long()
    x = torch.stack([*columns, male.double()], 1)
    return x[:rows], rich[:rows], male[:rows]


def adversarial(
    x: Tensor, y: Tensor, a: Tensor, *, strength: float, steps: int, g: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """A network whose score a second one tries to read the group from, by gradient reversal."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(0, 2**31, (), generator=g)))
        body = nn.Sequential(nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, 1))
        reader = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 1))
    parts = [{"params": body.parameters(), "lr": 2e-3}, {"params": reader.parameters(), "lr": 1e-2}]
    optimizer = torch.optim.Adam(parts)
    x, y, a = x.float(), y.float(), a.float()
    loss = nn.functional.binary_cross_entropy_with_logits
    for _ in range(steps):
        rows = torch.randint(0, len(x), (1024,), generator=g)
        score = body(x[rows])
        told = reader(reverse_gradient(score, strength=strength))
        optimizer.zero_grad()
        (loss(score[:, 0], y[rows]) + loss(told[:, 0], a[rows])).backward()
        optimizer.step()
    body.requires_grad_(False)
    return lambda z: (body(z.float())[:, 0] > 0).long()


def frontier(seed: int, rows: int | None, rounds: int, steps: int) -> dict[str, Any]:
    """Counts of the decisions of each method on people that it did not see."""
    x, y, a = census(rows)
    g = generator(seed)
    order = torch.randperm(len(x), generator=g)
    train, test = order[: 2 * len(x) // 3], order[2 * len(x) // 3 :]
    xs, ys, groups = x[train], y[train], a[train]
    found: dict[str, Any] = {}

    def keep(name: str, decided: Tensor) -> None:
        counts = fa.cells(y[test], decided, a[test], size=2)
        found[name] = [count.tolist() for count in counts]

    def linear(**options: Any) -> de.FairLogistic:
        return de.fair_logistic(xs, ys, groups, penalty=1e-4, **options)

    plain = linear()
    keep("logistic", plain.probe.predict(x[test]))
    blind = de.fair_logistic(xs[:, :-1], ys, groups, penalty=1e-4)
    keep("sex dropped", blind.probe.predict(x[test][:, :-1]))
    weighted = linear(weights=de.reweigh(ys, groups))
    keep("reweighed", weighted.probe.predict(x[test]))
    for share in (0.5, 0.25, 0.0):
        made = linear(limit=share * abs(plain.free))
        keep(f"covariance {share}", made.probe.predict(x[test]))
    eraser = de.leace(xs, groups)
    erased = de.fair_logistic(eraser(xs), ys, groups, penalty=1e-4)
    keep("LEACE", erased.probe.predict(eraser(x[test])))
    for constraint, short in (("demographic parity", "parity"), ("equalized odds", "odds")):
        for slack in (0.05, 0.02, 0.005):
            mixture = de.exponentiated_gradient(
                xs, ys, groups, learner=de.logistic_learner(penalty=1e-4), constraint=constraint,
                slack=slack, bound=3.0, rounds=rounds, step=0.5,
            )  # fmt: skip
            chance = mixture.predict_proba(x[test])
            lot = rand(len(test), generator=g, dtype=torch.float64)
            keep(f"game, {short} {slack}", (lot < chance).long())
            if constraint == "demographic parity" and slack == 0.02:
                found["fit"] = [mixture.gap, mixture.error, mixture.violation, len(mixture.rules)]
    for strength in (0.0, 0.5, 1.0, 2.0):
        rule = adversarial(xs, ys, groups, strength=strength, steps=steps, g=g)
        keep(f"adversary {strength}", rule(x[test]))
    score = (20 * plain.probe.scores(xs)[:, 0].sigmoid()).round()
    for constraint, short in (("demographic parity", "parity"), ("equalized odds", "odds")):
        made = fa.derive(ys, score, groups, constraint=constraint)
        later = (20 * plain.probe.scores(x[test])[:, 0].sigmoid()).round()
        keep(f"afterwards, {short}", made.predict(later, a[test], generator=g))
    return found


# A corpus ---------------------------------------------------------------------------------------

MEN, WOMEN = ("he", "him", "his", "himself"), ("she", "her", "hers", "herself")


def around(sentences: Sequence[Sequence[str]], words: Sequence[str], window: int) -> Counter[str]:
    """How often each word stands near one of some words."""
    near: Counter[str] = Counter()
    for sentence in sentences:
        for place, word in enumerate(sentence):
            if word in words:
                near.update(sentence[max(0, place - window) : place])
                near.update(sentence[place + 1 : place + 1 + window])
    return near


def correlation(x: Tensor, z: Tensor) -> float:
    """Pearson's."""
    return float(torch.corrcoef(torch.stack([x.double(), z.double()]))[0, 1])


def swapped_corpus(seed: int, articles: int, epochs: int) -> dict[str, Any]:
    """Vectors of a corpus, and of the corpus with its swapped copy."""
    texts = [item.document for item in data.xsum()[:articles]]
    lexicon = de.SwapLexicon()
    sides = [lexicon.counts(text) for text in texts]
    halves = [tokenize(text) for text in texts]
    swapped = [tokenize(lexicon.swap(text)) for text in texts]
    men, women = around(halves, MEN, 5), around(halves, WOMEN, 5)
    count = Counter(word for text in halves for word in text)
    least = 50
    words = [
        w for w, c in count.items()
        if c >= least and w.isalpha() and len(w) > 2 and w not in (*MEN, *WOMEN)
    ]  # fmt: skip
    words = [w for w in words if men[w] + women[w] >= least]
    skew = de.log_skew(
        torch.tensor([float(men[w]) for w in words]), torch.tensor([float(women[w]) for w in words])
    )
    # The same number of words is read: the doubled text takes half of the rounds.
    found: dict[str, Any] = {
        "words": len(words),
        "men": sum(side[0] for side in sides),
        "women": sum(side[1] for side in sides),
    }
    for name, both, rounds in (
        ("original", halves, 2 * epochs),
        ("swapped too", halves + swapped, epochs),
    ):
        made = train_sgns(
            corpus(both, min_count=5), dim=50, schedule=Schedule(epochs=rounds, window=5),
            generator=generator(seed),
        )  # fmt: skip
        unit = nn.functional.normalize(made.vectors.double(), dim=1)
        row = {word: i for i, word in enumerate(made.words)}
        men_rows, women_rows = (unit[[row[w] for w in some]] for some in (MEN[:3], WOMEN[:2]))
        along = de.association(unit[[row[w] for w in words]], men_rows, women_rows)
        found[name] = {
            "correlation": correlation(skew, along),
            "spread": float(along.std()),
            "pair": float(unit[row["he"]] @ unit[row["she"]]),
        }
        if seed == 0:
            found[name]["along"] = " ".join(f"{v:.4f}" for v in along.tolist())
    if seed == 0:
        found["skew"] = " ".join(f"{v:.3f}" for v in skew.tolist())
    return found


# Sentences of MiniLM ------------------------------------------------------------------------------

SEAT = ("This is {}.", "That is {}.", "There is {}.", "Here is {}.", "{} is here.", "{} is there.")
FITTED = (
    "A {} came in.", "I met a {} yesterday.", "The {} read a letter.", "We spoke with the {}.",
    "The {} was late again.", "Have you seen the {}?", "The {} lives near the river.",
    "Nobody asked the {}.", "The {} had bread and soup.", "They waited for the {}.",
)  # fmt: skip


def gender_pairs(leave_out: set[str]) -> list[tuple[str, str]]:
    """Pairs of male and female words from the lists of Bolukbasi et al., in this order."""
    lists = data.gender_words()
    turned = {"wives", "ex_girlfriend"}  # the lists have these the other way round
    pairs = [(b.lower(), a.lower()) for a, b in lists.definitional_pairs]
    for one, other in lists.equalize_pairs:
        a, b = one.lower(), other.lower()
        pairs.append((b, a) if a in turned else (a, b))
    plain = [p for p in dict.fromkeys(pairs) if "_" not in "".join(p)]
    return [p for p in plain if not leave_out & set(p)]


def sentences(seed: int, shown: int | None) -> dict[str, Any]:
    """Association tests before and after erasure that was fitted on other words."""
    encoder = minilm()
    g = generator(seed)
    tests = [data.weat()[i] for i in (0, 1, 3, 5, 6, 7)][:shown]
    groups = ("first_target", "second_target", "first_attribute", "second_attribute")
    tested = {w.lower() for t in tests for name in groups for w in getattr(t, name).words}
    pairs = gender_pairs(tested)
    chosen = torch.randperm(len(pairs), generator=g)[: int(0.8 * len(pairs))].tolist()
    fitted = [pairs[i] for i in chosen]
    others = [pair for i, pair in enumerate(pairs) if i not in chosen]

    def vectors(some: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
        texts = [s for pair in some for word in pair for s in de.in_sentences([word], FITTED)]
        side = torch.tensor([k for _ in some for k in (0, 1) for _ in FITTED])
        return encoder.embed(texts).double(), side

    x, side = vectors(fitted)
    held, held_side = vectors(others)
    found: dict[str, Any] = {"pairs": len(fitted), "rows": len(x), "tests": {}}
    erasers = {
        "before": lambda v: v,
        "LEACE": de.leace(x, side),
        "shrunk": de.leace(x, side, shrinkage=0.5),
        "orthogonal": de.leace(x, side, method="orthogonal"),
    }
    for name, erase in erasers.items():
        probe = de.logistic_probe(erase(x), side, penalty=1e-4)
        found[f"probe {name}"] = [
            float(de.balanced_accuracy(probe.predict(erase(v)), s))
            for v, s in ((x, side), (held, held_side))
        ]
    for test in tests:
        embedded = []
        for name in groups:
            words = [word.lower() for word in getattr(test, name).words]
            made = encoder.embed(de.in_sentences(words, SEAT)).double()
            embedded.append(made.view(len(words), len(SEAT), -1))
        title = f"{test.first_target.name}, {test.first_attribute.name}"
        found["tests"][title] = {}
        for name, erase in erasers.items():
            of_words = [erase(e).mean(1) for e in embedded]
            made = de.weat(*of_words, draws=20_000, generator=g)
            apart = float(made.first.mean() - made.second.mean())
            found["tests"][title][name] = [made.effect, made.test.p_value, apart]
    return found


# Pronouns of SmolLM2 ------------------------------------------------------------------------------

TEMPLATES = (
    "The {} said that", "I met the {} yesterday, and", "The {} was late because",
    "We asked the {} whether", "Everyone likes the {} because", "The {} went home after",
)  # fmt: skip
OTHERS = (
    "The {} told us that", "Yesterday the {} came in, and", "The {} left early because",
    "Nobody knows when the {} thinks", "The {} smiled while", "The {} wrote to us that",
    "I know the {} well, and", "The {} was tired because",
)  # fmt: skip
AVOID = "The following text discriminates against people because of their gender:\n"


def singular(name: str) -> str:
    """One person of an occupation: two of the names are plurals, and one is an abbreviation."""
    return "CEO" if name == "ceo" else name.removesuffix("s")


def batches(decoder: TextDecoder, prompts: Sequence[str], start: Sequence[int]) -> list[Any]:
    """Prompts of one length side by side: their places, and their tokens after a beginning."""
    assert decoder.tokenizer is not None
    rows: dict[int, list[tuple[int, list[int]]]] = {}
    for place, prompt in enumerate(prompts):
        ids = [*start, *decoder.tokenizer.encode(prompt).ids]
        rows.setdefault(len(ids), []).append((place, ids))
    return [([p for p, _ in some], torch.tensor([r for _, r in some])) for some in rows.values()]


def next_logits(decoder: TextDecoder, prompts: Sequence[str], start: Sequence[int]) -> Tensor:
    """Logits of what follows each prompt."""
    made = torch.zeros(len(prompts), decoder.model.config.vocab)
    with torch.inference_mode():
        for places, ids in batches(decoder, prompts, start):
            for k in range(0, len(ids), 32):
                made[places[k : k + 32]] = decoder.model(ids[k : k + 32])[:, -1]
    return made


def pronouns(seed: int, words: int, texts: int) -> dict[str, Any]:
    """Erase gender at five places of the stream, and look at what the model says then."""
    decoder = smollm2()
    assert decoder.tokenizer is not None
    assert decoder.start is not None
    start = [decoder.start]
    he, she = (decoder.tokenizer.encode(w).ids[0] for w in (" he", " she"))
    women = data.occupations()
    jobs = [t.format(singular(name)) for name in women for t in TEMPLATES]
    share = torch.tensor(list(women.values()))
    singles = ("king", "man", "boy", "father", "uncle", "brother", "son", "husband", "prince",
        "grandfather", "nephew", "gentleman", "businessman", "congressman", "monk", "waiter",
        "actor", "spokesman", "grandson", "schoolboy", "councilman", "salesman", "hero",
        "duke")  # fmt: skip
    partners = ("queen", "woman", "girl", "mother", "aunt", "sister", "daughter", "wife",
        "princess", "grandmother", "niece", "lady", "businesswoman", "congresswoman", "nun",
        "waitress", "actress", "spokeswoman", "granddaughter", "schoolgirl", "councilwoman",
        "saleswoman", "heroine", "duchess")  # fmt: skip
    order = torch.randperm(len(singles), generator=generator(seed))[:words].tolist()
    half = 2 * len(order) // 3
    fitted = [(singles[i], partners[i]) for i in order[:half]]
    held = [(singles[i], partners[i]) for i in order[half:]]
    teach = [t.format(w) for pair in fitted for w in pair for t in OTHERS]
    side = torch.tensor([k for _ in fitted for k in (0, 1) for _ in OTHERS])
    judge = [t.format(w) for pair in held for w in pair for t in TEMPLATES]
    truth = torch.tensor([k for _ in held for k in (0, 1) for _ in TEMPLATES])
    neutral = [item.summary for item in data.xsum() if not re.search(
        r"\b(s?he|him|his|hers?)\b", item.summary.lower())][:texts]  # fmt: skip
    last = "blocks.29.stream"

    def streams(prompts: Sequence[str]) -> Tensor:
        made = torch.zeros(len(prompts), decoder.model.config.dim)
        with torch.inference_mode():
            for places, ids in batches(decoder, prompts, start):
                with watch(decoder.model, read=[last]) as seen:
                    decoder.model(ids)
                made[places] = seen[last][:, -1]
        return made

    def outcome(logits: Tensor) -> dict[str, Any]:
        logp = logits.log_softmax(-1)
        gap = (logp[:, he] - logp[:, she]).view(len(women), -1).mean(1)
        slope = torch.cov(torch.stack([share, gap]))[0, 1] / share.var()
        return {
            "correlation": correlation(share, gap),
            "slope": float(slope),
            "mean": float(gap.mean()),
            "pronoun": float((logp[:, he].exp() + logp[:, she].exp()).mean()),
            "gaps": " ".join(f"{v:.3f}" for v in gap.tolist()),
        }

    def judged() -> dict[str, Any]:
        found = outcome(next_logits(decoder, jobs, start))
        logits = next_logits(decoder, judge, start)
        said = (logits[:, he] < logits[:, she]).long()
        found["agreement"] = float(de.balanced_accuracy(said, truth))
        probe = de.logistic_probe(streams(teach), side, penalty=1e-2)
        found["probe"] = float(de.balanced_accuracy(probe.predict(streams(judge)), truth))
        found["nats"] = float(torch.cat([decoder.nats(text) for text in neutral]).mean())
        return found

    found: dict[str, Any] = {"plain": judged()}
    rows = []
    for places, ids in batches(decoder, teach, start):
        real = torch.ones_like(ids, dtype=torch.bool)
        last_two = torch.zeros_like(real)
        last_two[:, -2:] = True
        rows.append(de.TextBatch(ids=ids, real=real, concept=side[places], rows=last_two))
    sites = [f"blocks.{k}.stream" for k in (9, 14, 19, 24, 29)]
    for shrinkage in (0.0, 0.5):
        scrubber = de.scrub(decoder.model, rows, sites=sites, classes=2, shrinkage=shrinkage)
        with scrubber.applied(decoder.model):
            found[f"erased {shrinkage:g}"] = judged()
    site = "blocks.19.stream"
    taught = []
    with torch.inference_mode():
        for places, ids in batches(decoder, teach, start):
            with watch(decoder.model, read=[site]) as seen:
                decoder.model(ids)
            taught.append((side[places], seen[site][:, -1].clone()))
    kind, at = (torch.cat(part) for part in zip(*taught, strict=True))
    toward = steering_vector(at[kind == 1], at[kind == 0])
    for strength in (1.0, 4.0):
        with steer(decoder.model, site, toward, strength=strength, last=True):
            found[f"steered {strength}"] = outcome(next_logits(decoder, jobs, start))
    if seed == 0:
        plain = next_logits(decoder, jobs, start)
        told = [*start, *decoder.tokenizer.encode(AVOID).ids]
        biased = next_logits(decoder, jobs, told)
        for decay in (10.0, 50.0, 100.0):
            found[f"self-debias {decay:g}"] = outcome(
                de.self_debias_logits(plain, biased, decay=decay)
            )
    return found


def main(argv: list[str] | None = None) -> None:
    """Run all parts, and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=None, help="of the census; all by default")
    parser.add_argument("--rounds", type=int, default=25, help="of the game")
    parser.add_argument("--steps", type=int, default=1000, help="of the adversary")
    parser.add_argument("--articles", type=int, default=1000, help="of the corpus")
    parser.add_argument("--epochs", type=int, default=5, help="of the corpus with its copy")
    parser.add_argument("--tests", type=int, default=None, help="of associations; all by default")
    parser.add_argument("--words", type=int, default=24, help="pairs of words for SmolLM2")
    parser.add_argument("--texts", type=int, default=20, help="summaries for SmolLM2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="one part, for a trial")
    asked = parser.parse_args(argv)
    begin, cpu = time.perf_counter(), time.process_time()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[int], dict[str, Any]]] = {
        "census": lambda seed: frontier(seed, asked.people, asked.rounds, asked.steps),
        "corpus": lambda seed: swapped_corpus(seed, asked.articles, asked.epochs),
        "sentences": lambda seed: sentences(seed, asked.tests),
        "pronouns": lambda seed: pronouns(seed, asked.words, asked.texts),
    }
    results: dict[str, Any] = {}
    for name, part in parts.items():
        if asked.only in ("", name):
            results[name] = []
            for seed in SEEDS[: asked.seeds]:
                results[name].append(part(seed))
                print(f"{name} {seed}: {time.process_time() - cpu:.0f} s", flush=True)
    results["cpu_seconds"] = round(time.process_time() - cpu, 1)
    if asked.only:
        print(results)
        return
    store("debiasing", results, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
