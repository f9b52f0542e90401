"""Link nouns to WordNet, find names in CoNLL-2003, and give the finder what the links know.

Needs WordNet's files (``apt-get download wordnet-base; dpkg-deb -x wordnet-base*.deb FOLDER``, then
``--wordnet FOLDER/usr/share``). Some minutes of one core. In the first part an example sentence of
WordNet is a context, one of its nouns the mention, and the meaning that the example stands under
the truth; words are divided between training, choice of settings, and test. In the second part a
tagger reads frozen features of MiniLM, in five folds of news items.
"""

import argparse
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from companion import data
from companion.core import generator
from companion.foundations.optimization import AdamW
from companion.knowledge import entity_linking as el
from companion.models import TextEncoder, minilm

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

K = 12  # candidates that are offered
LABELS = ("PER", "LOC", "ORG", "MISC")
TAGS = el.tag_names(LABELS)
FOLDS = 5
NOTICE = "Definitions and examples: WordNet 3.0 Copyright 2006 by Princeton University."


class Item(NamedTuple):
    """A noun in an example sentence of WordNet, and the meaning that the sentence stands under."""

    lemma: str
    context: str
    synset: str
    count: int  # of this meaning of this noun in tagged text


def items_of(words: data.WordNet) -> list[Item]:
    """One item for each example in which a noun of its meaning is found that has another one."""
    found = []
    for key, synset in words.synsets.items():
        for example in synset.examples:
            plain = f" {re.sub(r'[^a-z0-9 -]', ' ', example.lower())} "
            for word in synset.words:
                lemma = word.lower()
                forms = (lemma, f"{lemma}s", f"{lemma}es", re.sub("y$", "ies", lemma))
                senses = words.senses.get(lemma, ())
                if len(senses) > 1 and any(f" {form} " in plain for form in forms):
                    count = next(s.count for s in senses if s.synset == key)
                    found.append(Item(lemma, example, key, count))
                    break
    return found


@dataclass(frozen=True, eq=False)
class Questions:
    """Items with their candidates as tensors."""

    items: list[Item]
    index: el.CandidateIndex
    mentions: Tensor  # items dim
    candidates: el.Candidates
    entities: Tensor  # items K dim
    true: Tensor  # numbers of entities
    weight: Tensor  # counts

    def part(self, rows: Tensor) -> "Questions":
        """Some of the items."""
        return Questions(
            [self.items[i] for i in rows.tolist()],
            self.index,
            self.mentions[rows],
            el.Candidates(*(t[rows] for t in self.candidates)),
            self.entities[rows],
            self.true[rows],
            self.weight[rows],
        )


def questions(words: data.WordNet, text: TextEncoder, items: list[Item], vectors: Any) -> Questions:
    """Look the candidates up and encode contexts."""
    lemmas = sorted({item.lemma for item in items})
    counts = {m: {s.synset: s.count for s in words.senses[m]} for m in lemmas}
    index = el.CandidateIndex(counts, smoothing=0.5)
    found = index.lookup([item.lemma for item in items], K)
    table = torch.stack([vectors(synset) for synset in index.entities])
    entities = table[found.ids.clamp_min(0)]
    mentions = text.embed([f"{item.lemma}: {item.context}" for item in items], batch_size=64)
    true = torch.tensor([index.number(item.synset) for item in items])
    weight = torch.tensor([float(item.count) for item in items])
    return Questions(items, index, mentions, found, entities, true, weight)


class Glosses:
    """Vectors of meanings: the words and the definition, without the examples."""

    def __init__(self, words: data.WordNet, text: TextEncoder) -> None:
        self.words, self.text = words, text
        self.known: dict[str, Tensor] = {}

    def learn(self, keys: Sequence[str]) -> None:
        """Encode those that are new."""
        new = sorted({key for key in keys if key not in self.known})
        if new:
            synsets = [self.words.synsets[key] for key in new]
            texts = [f"{', '.join(s.words[:3])}: {s.definition}" for s in synsets]
            vectors = self.text.embed(texts, batch_size=64, truncate=True)
            self.known.update(zip(new, vectors.unbind(), strict=True))

    def __call__(self, key: str) -> Tensor:
        return self.known[key]


def interval(values: Tensor, groups: Sequence[Any], weight: Tensor, *, seed: int) -> list[float]:
    """A weighted mean and its bootstrap interval of 95 %, groups drawn whole."""
    names = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    of = torch.tensor([names[group] for group in groups])
    top = torch.zeros(len(names), dtype=torch.float64).index_add(0, of, (values * weight).double())
    low = torch.zeros(len(names), dtype=torch.float64).index_add(0, of, weight.double())
    draws = torch.randint(len(names), (2000, len(names)), generator=generator(seed))
    means = top[draws].sum(1) / low[draws].sum(1)
    ends = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return [round(value, 4) for value in (float(top.sum() / low.sum()), *ends)]


def choose(asked: Questions, log_probs: Tensor) -> Tensor:
    """Numbers of the chosen entities; -1 for the choice after the last candidate."""
    best = log_probs.argmax(1, keepdim=True)
    ids = torch.cat([asked.candidates.ids, torch.full_like(best, -1)], 1)
    return ids.gather(1, best)[:, 0]


def accuracies(asked: Questions, chosen: Tensor) -> dict[str, list[float]]:
    """Over examples as they stand, and weighted by how often each meaning occurs in text."""
    right = (chosen == asked.true).float()
    lemmas = [item.lemma for item in asked.items]
    return {
        "examples": interval(right, lemmas, torch.ones_like(right), seed=1),
        "text": interval(right, lemmas, asked.weight, seed=1),
    }


def fit_head(head: el.Disambiguator, asked: Questions, weight: Tensor, *, steps: int) -> float:
    """Maximize the weighted log-likelihood of the true candidates; return it a unit of weight."""
    offered = asked.candidates.ids == asked.true[:, None]
    use = offered.any(1)
    target = offered.float().argmax(1)
    optimizer = AdamW(head.parameters(), lr=0.05, weight_decay=0.0)
    loss = torch.zeros(())
    for _ in range(steps):
        logs = head(asked.mentions, asked.entities, log_prior=asked.candidates.log_prior)
        picked = logs.gather(1, target[:, None])[:, 0]
        loss = -(picked[use] * weight[use]).sum() / weight[use].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def head_like(scale: float, prior: float, nil: float | None = None) -> el.Disambiguator:
    """A head with given weights."""
    head = el.Disambiguator(384, nil=nil is not None)
    with torch.no_grad():
        head.log_scale.fill_(float(torch.tensor(scale).log()))
        head.prior_weight.fill_(prior)
        if head.nil is not None and nil is not None:
            head.nil.fill_(nil)
    return head


def disambiguation(asked: dict[str, Questions], *, steps: int) -> dict[str, Any]:
    """Prior, context, and both, with weights chosen on the words of the second part."""
    dev, test = asked["dev"], asked["test"]
    prior = test.candidates.log_prior
    ranks = torch.arange(K).expand_as(prior)
    gold = test.candidates.ids == test.true[:, None]
    sizes = torch.tensor([len(test.index.counts[i.lemma]) for i in test.items], dtype=torch.float)
    lemmas = [item.lemma for item in test.items]
    ones = torch.ones_like(sizes)
    found: dict[str, Any] = {
        "items": {name: len(part.items) for name, part in asked.items()},
        "words": {name: len({i.lemma for i in part.items}) for name, part in asked.items()},
        "senses": float(sizes.mean()),
        "recall": [float((gold & (ranks < k)).any(1).float().mean()) for k in (1, 2, 4, 8, K)],
        "chance": {
            "examples": interval(1 / sizes, lemmas, ones, seed=1),
            "text": interval(1 / sizes, lemmas, test.weight, seed=1),
        },
        "prior": accuracies(test, choose(test, prior)),
        "context": {},
        "both": {},
        "learned": {},
    }
    bare = torch.where(prior > -torch.inf, 0.0, prior)
    alone = el.link_log_probs(test.mentions, test.entities, log_prior=bare, prior_weight=0.0)
    found["context"] = accuracies(test, choose(test, alone))
    for name, weight in (("examples", torch.ones_like(dev.weight)), ("text", dev.weight)):
        head = el.Disambiguator(384)
        with torch.no_grad():
            head.log_scale.fill_(2.0)
        fit_head(head, dev, weight, steps=steps)
        logs = head(test.mentions, test.entities, log_prior=prior).detach()
        found["both"][name] = accuracies(test, choose(test, logs))
        found["learned"][name] = [
            float(p.detach()) for p in (head.log_scale.exp(), head.prior_weight)
        ]
        if name == "text":
            both, only = choose(test, logs) == test.true, choose(test, prior) == test.true
            gain = both.float() - only.float()
            found["gain_text"] = interval(gain, lemmas, test.weight, seed=1)
    # Accuracy along the weight of the prior, at the scale that was learned for text.
    scale = found["learned"]["text"][0]
    found["sweep"] = []
    for weight_of_prior in (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0):
        logs = head_like(scale, weight_of_prior)(test.mentions, test.entities, log_prior=prior)
        told = accuracies(test, choose(test, logs.detach()))
        found["sweep"].append([weight_of_prior, told["examples"][0], told["text"][0]])
    return found


def negatives(asked: dict[str, Questions], *, seeds: int, steps: int) -> list[dict[str, Any]]:
    """Learn a map of contexts from in-batch negatives, with and without the correction."""
    train, test = asked["train"], asked["test"]
    counts = train.weight + 0.5
    q = torch.zeros(len(train.index.entities)).index_add(0, train.true, counts)
    log_q = (q / q.sum()).log()[train.true]
    place = (train.candidates.ids == train.true[:, None]).float().argmax(1)
    entities = train.entities[torch.arange(len(place)), place]
    prior = test.candidates.log_prior
    found = []
    for seed in range(seeds):
        for corrected in (False, True):
            g = generator(seed)
            head = el.Disambiguator(384, project=True)
            with torch.no_grad():
                head.log_scale.fill_(3.0)
            optimizer = AdamW(head.parameters(), lr=1e-3, weight_decay=0.0)
            for _ in range(steps):
                rows = torch.multinomial(counts, 64, replacement=True, generator=g)
                assert head.map is not None
                loss = el.in_batch_loss(
                    train.mentions[rows] @ head.map,
                    entities[rows],
                    ids=train.true[rows],
                    log_q=log_q[rows] if corrected else None,
                    scale=head.log_scale.exp(),
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            row: dict[str, Any] = {"seed": seed, "corrected": corrected}
            for weight in (0.0, 1.0):
                with torch.no_grad():
                    head.prior_weight.fill_(weight)
                    flat = torch.where(prior > -torch.inf, 0.0, prior)
                    logs = head(test.mentions, test.entities, log_prior=prior if weight else flat)
                row["both" if weight else "context"] = accuracies(test, choose(test, logs))
            found.append(row)
    return found


def without_entity(asked: dict[str, Questions], *, steps: int) -> dict[str, Any]:
    """Take the true candidate away from half of the mentions, and learn when to say nothing."""

    def broken(part: Questions, seed: int) -> Questions:
        gone = torch.rand(len(part.items), generator=generator(seed)) < 0.5
        true = part.true.masked_fill(gone, -1)
        held = (part.candidates.ids == part.true[:, None]) & gone[:, None]
        ids = part.candidates.ids.masked_fill(held, -1)
        log_prior = part.candidates.log_prior.masked_fill(held, -torch.inf)
        return Questions(
            part.items,
            part.index,
            part.mentions,
            el.Candidates(ids, log_prior),
            part.entities,
            true,
            part.weight,
        )

    dev, test = broken(asked["dev"], 5), broken(asked["test"], 6)
    head = el.Disambiguator(384, nil=True)
    with torch.no_grad():
        head.log_scale.fill_(2.0)
    target = torch.where(
        dev.true < 0, K, (dev.candidates.ids == dev.true[:, None]).float().argmax(1)
    )
    use = (dev.true < 0) | (dev.candidates.ids == dev.true[:, None]).any(1)
    optimizer = AdamW(head.parameters(), lr=0.05, weight_decay=0.0)
    for _ in range(steps):
        logs = head(dev.mentions, dev.entities, log_prior=dev.candidates.log_prior)
        loss = -logs.gather(1, target[:, None])[use].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logs = head(test.mentions, test.entities, log_prior=test.candidates.log_prior)
    told = el.link_scores(test.true, choose(test, logs), test.candidates.ids)
    never = el.link_scores(test.true, choose(test, logs[:, :K]), test.candidates.ids)
    curve = []
    for shift in torch.linspace(-6, 6, 25).tolist():
        moved = logs.clone()
        moved[:, K] += shift
        scores = el.link_scores(test.true, choose(test, moved), test.candidates.ids)
        curve.append([shift, *(round(v, 4) for v in scores)])
    return {"with": told._asdict(), "never": never._asdict(), "curve": curve}


def coherence(
    words: data.WordNet, asked: dict[str, Questions], glosses: Glosses, *, most: int
) -> dict[str, Any]:
    """Let the other nouns of a sentence vote: the best sum of scores and of products of pairs."""
    common = {"be", "have", "do", "it", "he", "i", "a", "in", "at", "an", "as", "was", "are", "can"}

    def others(item: Item) -> list[str]:
        plain = re.findall("[a-z]+", item.context.lower())
        nouns = [w for w in plain if len(w) > 3 and w in words.senses and w not in common]
        kept = [w for w in dict.fromkeys(nouns) if not item.lemma.startswith(w[:-1])]
        return sorted(kept, key=lambda w: -len(w))[:3]

    kept = {}
    for name in ("dev", "test"):
        part = asked[name]
        rows = [i for i, item in enumerate(part.items) if others(item)][:most]
        kept[name] = part.part(torch.tensor(rows))
    extra = {n for part in kept.values() for item in part.items for n in others(item)}
    glosses.learn([s.synset for noun in extra for s in words.senses[noun][:4]])

    def choices(part: Questions, weight: float) -> Tensor:
        chosen = []
        head = head_like(10.0, 0.5)
        logs = head(part.mentions, part.entities, log_prior=part.candidates.log_prior).detach()
        for i, item in enumerate(part.items):
            scores, entities = [logs[i]], [part.entities[i]]
            for noun in others(item):
                senses = words.senses[noun][:4]
                vectors = torch.zeros(K, 384)
                vectors[: len(senses)] = torch.stack([glosses(s.synset) for s in senses])
                counts = torch.tensor([s.count + 0.5 for s in senses])
                score = torch.full((K,), -torch.inf)
                fit = 10.0 * vectors[: len(senses)] @ part.mentions[i]
                score[: len(senses)] = (0.5 * (counts / counts.sum()).log() + fit).log_softmax(0)
                scores.append(score)
                entities.append(vectors)
            best = el.coherent_links(
                torch.stack(scores), torch.stack(entities), weight=weight, exact=False
            )
            chosen.append(part.candidates.ids[i, best[0]])
        return torch.stack(chosen)

    found: dict[str, Any] = {"dev": [], "test": [], "items": len(kept["test"].items)}
    for weight in (0.0, 0.5, 1.0, 2.0, 4.0):
        for name in ("dev", "test"):
            told = accuracies(kept[name], choices(kept[name], weight))
            found[name].append([weight, told["examples"], told["text"]])
    return found


# Names in news


class Sentence(NamedTuple):
    """A sentence with the features of its words, its tags, and what WordNet knows of its names."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    document: int
    features: Tensor  # n 384 + 4
    entities: Tensor  # n 384, at the first word of a linked mention
    present: Tensor  # n
    links: list[tuple[int, int, str]]  # start, end, synset


@torch.no_grad()
def features(text: TextEncoder, words: Sequence[str]) -> Tensor:
    """MiniLM's vector of the first piece of each word, and four marks of how it is written."""
    assert text.tokenizer is not None
    encoded = text.tokenizer.encode(list(words), is_pretokenized=True)
    first = [encoded.word_ids.index(i) for i in range(len(words))]
    hidden = text.model(torch.tensor([encoded.ids]))[0][first]
    looks = [
        [
            float(w[0].isupper()),
            float(w.isupper()),
            float(any(c.isdigit() for c in w)),
            float(i == 0),
        ]
        for i, w in enumerate(words)
    ]
    return torch.cat([hidden, torch.tensor(looks)], 1)


def named(words: data.WordNet, sentence: Sequence[str]) -> list[tuple[int, int]]:
    """Longest matches, from the left, of capitalized words with single things in WordNet."""
    found, i = [], 0
    while i < len(sentence):
        for size in (4, 3, 2, 1):
            part = sentence[i : i + size]
            name = " ".join(part).lower()
            known = words.senses.get(name, ())
            capital = len(part) == size and part[0][0].isupper() and len(name) > 1
            if capital and any(words.synsets[s.synset].instance for s in known):
                found.append((i, i + size))
                i += size - 1
                break
        i += 1
    return found


def sentences(words: data.WordNet, text: TextEncoder, glosses: Glosses) -> list[Sentence]:
    """Encode the sample, and link what WordNet knows."""
    sample = data.conll_sample()
    places = [named(words, s.words) for s in sample]
    senses = {
        " ".join(s.words[a:b]).lower()
        for s, some in zip(sample, places, strict=True)
        for a, b in some
    }
    glosses.learn([s.synset for name in senses for s in words.senses[name][:K]])
    head = head_like(10.0, 0.5)
    made = []
    for sentence, some in zip(sample, places, strict=True):
        n = len(sentence.words)
        entities, present, links = torch.zeros(n, 384), torch.zeros(n, dtype=torch.bool), []
        for start, end in some:
            name = " ".join(sentence.words[start:end])
            known = words.senses[name.lower()][:K]
            vectors = torch.stack([glosses(s.synset) for s in known])
            counts = torch.tensor([s.count + 0.5 for s in known])
            context = text.embed([f"{name}: {' '.join(sentence.words)}"], truncate=True)
            prior = (counts / counts.sum()).log()[None]
            best = int(head(context, vectors[None], log_prior=prior).argmax())
            entities[start], present[start] = vectors[best], True
            links.append((start, end, known[best].synset))
        made.append(
            Sentence(
                *(sentence.words, sentence.tags, sentence.document),
                features(text, sentence.words),
                *(entities, present, links),
            )
        )
    return made


class Tagger(nn.Module):
    """Features, a layer, an optional fusion with entities, and scores of tags."""

    def __init__(self, fusion: str, g: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Linear(388, 64)
        self.up = nn.Linear(64, len(TAGS))
        self.fusion: nn.Module | None = None
        if fusion == "gate":
            self.fusion = el.GatedFusion(64, 384)
        elif fusion == "ernie":
            self.fusion = el.ERNIEFusion(64, 384, 64)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.trunc_normal_(p, std=p.shape[1] ** -0.5, generator=g)
            elif name != "fusion.from_words.bias":
                nn.init.zeros_(p)

    def forward(self, x: Tensor, entities: Tensor, present: Tensor) -> Tensor:
        hidden = torch.relu(self.down(x))
        if isinstance(self.fusion, el.GatedFusion):
            hidden = self.fusion(hidden, entities, present)
        elif isinstance(self.fusion, el.ERNIEFusion):
            hidden = hidden + self.fusion(hidden, entities, present)[0]
        out: Tensor = self.up(hidden)
        return out


class Batch(NamedTuple):
    """Sentences side by side."""

    x: Tensor
    entities: Tensor
    present: Tensor
    tags: Tensor
    real: Tensor


def batch_of(some: Sequence[Sentence]) -> Batch:
    """Pad on the right."""
    number = {tag: i for i, tag in enumerate(TAGS)}
    tags = [torch.tensor([number[t] for t in s.tags]) for s in some]
    real = [torch.ones(len(s.tags), dtype=torch.bool) for s in some]

    def pad(parts: list[Tensor], value: float = 0.0) -> Tensor:
        return pad_sequence(parts, batch_first=True, padding_value=value)

    return Batch(
        pad([s.features for s in some]),
        pad([s.entities for s in some]),
        pad([s.present for s in some], False),
        pad(tags, -100),
        pad(real, False),
    )


def train_tagger(
    training: list[Sentence], *, crf: bool, fusion: str, seed: int, passes: int
) -> tuple[Tagger, el.LinearChainCRF]:
    """AdamW, sixteen sentences a step."""
    g = generator(seed)
    model = Tagger(fusion, g)
    rules = el.tag_constraints(TAGS)
    layer = el.LinearChainCRF(
        len(TAGS), allowed=rules.allowed, starts=rules.starts, ends=rules.ends
    )
    optimizer = AdamW([*model.parameters(), *layer.parameters()], lr=1e-2, weight_decay=0.01)
    for _ in range(passes):
        order = torch.randperm(len(training), generator=g).tolist()
        for i in range(0, len(order), 16):
            rows = batch_of([training[j] for j in order[i : i + 16]])
            scores = model(rows.x, rows.entities, rows.present)
            if crf:
                loss = layer(scores, rows.tags, real=rows.real, reduction="sum") / rows.real.sum()
            else:
                loss = nn.functional.cross_entropy(scores.flatten(0, 1), rows.tags.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval(), layer


def read_off(tags: Tensor, some: Sequence[Sentence]) -> list[list[str]]:
    """Numbers to names."""
    return [
        [TAGS[i] for i in row[: len(s.tags)].tolist()] for row, s in zip(tags, some, strict=True)
    ]


def invalid(tags: list[str]) -> int:
    """How many I follow nothing that they could go on with."""
    pairs = zip(["O", *tags], tags, strict=False)
    return sum(t[0] == "I" and before[1:] != t[1:] for before, t in pairs)


def compare(
    told: dict[tuple[str, int], list[list[str]]],
    first: str,
    second: str,
    gold: list[Sentence],
    *,
    seeds: int,
) -> list[float]:
    """The difference of F1, seeds averaged, with an interval over news items drawn whole."""
    documents = sorted({s.document for s in gold})

    def counts(name: str, document: int) -> list[float]:
        rows = [i for i, s in enumerate(gold) if s.document == document]
        true = [gold[i].tags for i in rows]
        parts = [
            el.span_f1(true, [told[name, seed][i] for i in rows], scheme="BIO")
            for seed in range(seeds)
        ]
        return [sum(p.right for p in parts), sum(p.predicted + p.true for p in parts)]

    one = torch.tensor([counts(first, d) for d in documents], dtype=torch.float64)
    other = torch.tensor([counts(second, d) for d in documents], dtype=torch.float64)
    draws = torch.randint(len(documents), (2000, len(documents)), generator=generator(2))

    def f1(table: Tensor) -> Tensor:
        return 2 * table[..., 0] / table[..., 1]

    gaps = f1(other[draws].sum(1)) - f1(one[draws].sum(1))
    ends = gaps.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return [round(v, 4) for v in (float(f1(other.sum(0)) - f1(one.sum(0))), *ends)]


class Tagged(NamedTuple):
    """What the taggers of one start made of all sentences."""

    told: dict[str, list[list[str]]]
    confidence: list[
        list[float]
    ]  # of the field: least marginal of a name's tags, and if it is right


def tag_all(some: list[Sentence], *, seed: int, passes: int) -> Tagged:
    """Train the taggers, and tag each sentence by one that has not seen its news item."""
    documents = sorted({s.document for s in some})
    fold = {d: i % FOLDS for i, d in enumerate(documents)}
    pool = torch.cat([s.entities[s.present] for s in some])
    pool = pool[torch.randperm(len(pool), generator=generator(3))]
    shuffled, taken = [], 0
    for s in some:
        entities = s.entities.clone()
        entities[s.present] = pool[taken : taken + int(s.present.sum())]
        taken += int(s.present.sum())
        shuffled.append(s._replace(entities=entities))
    arms = {
        "argmax": (some, False, "none"),
        "crf": (some, True, "none"),
        "gate": (some, True, "gate"),
        "ernie": (some, True, "ernie"),
        "shuffled": (shuffled, True, "ernie"),
    }
    made = Tagged({}, [])
    for name, (read, crf, fusion) in arms.items():
        guesses: list[list[str]] = [[] for _ in some]
        bound: list[list[str]] = [[] for _ in some]
        for part in range(FOLDS):
            rows = [i for i, s in enumerate(some) if fold[s.document] == part]
            training = [s for s in read if fold[s.document] != part]
            model, layer = train_tagger(training, crf=crf, fusion=fusion, seed=seed, passes=passes)
            held = [read[i] for i in rows]
            inputs = batch_of(held)
            with torch.no_grad():
                scores = model(inputs.x, inputs.entities, inputs.present)
                best = layer.decode(scores, real=inputs.real).tags
                sure = layer.marginals(scores, real=inputs.real).tags
            if name == "crf":
                for row, s in enumerate(held):
                    gold = set(el.spans(s.tags, scheme="BIO"))
                    for span in el.spans(read_off(best[row : row + 1], [s])[0], scheme="BIO"):
                        inside = best[row, span.start : span.end]
                        least = sure[row, span.start : span.end].gather(1, inside[:, None]).min()
                        made.confidence.append([round(float(least), 3), int(span in gold)])
            free = scores.argmax(-1)
            for i, ruled, tags in zip(
                rows, read_off(best, held), read_off(free, held), strict=True
            ):
                bound[i] = ruled
                guesses[i] = ruled if crf else tags
        made.told[name] = guesses
        if name == "argmax":
            made.told["rules"] = bound
        print(name, seed, el.span_f1([s.tags for s in some], guesses, scheme="BIO").f1, flush=True)
    return made


def names(words: data.WordNet, some: list[Sentence], made: list[Tagged]) -> dict[str, Any]:
    """Score what the taggers of all starts found."""
    seeds = len(made)
    told = {(name, i): tags for i, one in enumerate(made) for name, tags in one.told.items()}
    confidence = [row for one in made for row in one.confidence]
    documents = {s.document for s in some}
    gold = [s.tags for s in some]
    found: dict[str, Any] = {"arms": {}, "confidence": confidence, "documents": len(documents)}
    for name in ("argmax", "rules", "crf", "gate", "ernie", "shuffled"):
        rows = []
        for seed in range(seeds):
            guess = told[name, seed]
            strict = el.span_f1(gold, guess, scheme="BIO")
            overlap = el.overlap_scores(gold, guess, scheme="BIO")
            rows.append(
                {
                    "strict": round(strict.f1, 4),
                    "precision": round(strict.precision, 4),
                    "recall": round(strict.recall, 4),
                    "conll": round(el.span_f1(gold, guess, scheme="conll").f1, 4),
                    "partial": round(overlap.partial, 4),
                    "orphans": sum(invalid(tags) for tags in guess),
                    "sentences": sum(invalid(tags) > 0 for tags in guess),
                }
            )
        found["arms"][name] = rows
    pairs = (
        ("argmax", "rules"),
        ("argmax", "crf"),
        ("rules", "crf"),
        ("crf", "gate"),
        ("crf", "ernie"),
        ("shuffled", "ernie"),
    )
    for one, other in pairs:
        found[f"{other} - {one}"] = compare(told, one, other, some, seeds=seeds)
    # What each step of the pipeline keeps.
    fields: Counter[tuple[str, str]] = Counter()
    covered: Counter[str] = Counter()
    total: Counter[str] = Counter()
    kept = 0
    for s, guess in zip(some, told["crf", 0], strict=True):
        links = {(a, b): words.synsets[key].field for a, b, key in s.links}
        predicted = set(el.spans(guess, scheme="BIO"))
        for span in el.spans(s.tags, scheme="BIO"):
            total[span.label] += 1
            field = links.get((span.start, span.end))
            if field is not None:
                covered[span.label] += 1
                fields[span.label, field] += 1
                kept += span in predicted
    found["true"] = dict(total)
    found["covered"] = dict(covered)
    found["covered_and_found"] = kept
    found["fields"] = [[label, field, n] for (label, field), n in sorted(fields.items())]
    return found


def divided(everything: Questions) -> dict[str, Questions]:
    """Divide the nouns: for training, for the choice of weights, and for the test."""
    lemmas = sorted({item.lemma for item in everything.items})
    random.Random(1).shuffle(lemmas)
    ratio = {lemma: i / len(lemmas) for i, lemma in enumerate(lemmas)}
    parts = {"train": (0.0, 0.4), "dev": (0.4, 0.6), "test": (0.6, 1.0)}
    split = {}
    for name, (low, high) in parts.items():
        held = [low <= ratio[item.lemma] < high for item in everything.items]
        split[name] = everything.part(torch.tensor(held).nonzero()[:, 0])
    return split


def main(argv: list[str] | None = None) -> None:
    """Link, tag, fuse, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wordnet", help="folder that holds the folder wordnet")
    parser.add_argument("--items", type=int, default=1200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--passes", type=int, default=6)
    parser.add_argument("--together", type=int, default=80)
    asked = parser.parse_args(argv)
    begin, cpu = time.perf_counter(), time.process_time()
    torch.set_num_threads(1)
    words, text = data.wordnet(directory=asked.wordnet), minilm()
    glosses = Glosses(words, text)
    items = items_of(words)
    random.Random(0).shuffle(items)
    items = items[: asked.items]
    glosses.learn([s.synset for item in items for s in words.senses[item.lemma]])
    print(f"{len(items)} items, {len(glosses.known)} meanings, {time.process_time() - cpu:.0f} s")
    split = divided(questions(words, text, items, glosses))
    results: dict[str, Any] = {
        "notice": NOTICE,
        "k": K,
        "linking": disambiguation(split, steps=asked.steps),
    }
    print(results["linking"], flush=True)
    results["negatives"] = negatives(split, seeds=asked.seeds, steps=asked.steps)
    print(results["negatives"], flush=True)
    results["nil"] = without_entity(split, steps=asked.steps)
    print(results["nil"]["with"], results["nil"]["never"], flush=True)
    results["coherence"] = coherence(words, split, glosses, most=asked.together)
    print(results["coherence"], flush=True)
    results["example"] = example(words, text, glosses)
    some = sentences(words, text, glosses)
    made = [tag_all(some, seed=seed, passes=asked.passes) for seed in range(asked.seeds)]
    results["names"] = names(words, some, made)
    results["cpu_seconds"] = round(time.process_time() - cpu, 1)
    store("entity_linking", results, seed=0, seconds=time.perf_counter() - begin)


def example(words: data.WordNet, text: TextEncoder, glosses: Glosses) -> list[dict[str, Any]]:
    """One noun with a few of its meanings, in two sentences of our own."""
    senses = words.senses["bank"][:5]
    glosses.learn([s.synset for s in senses])
    vectors = torch.stack([glosses(s.synset) for s in senses])
    counts = torch.tensor([s.count + 0.5 for s in senses])
    rows = []
    for context in ("The bank raised its interest rates.", "The river rose over its bank."):
        vector = text.embed([f"bank: {context}"])
        told = head_like(10.0, 1.0)(
            vector, vectors[None], log_prior=(counts / counts.sum()).log()[None]
        )
        rows.append(
            {
                "context": context,
                "cosine": [round(float(c), 3) for c in vectors @ vector[0]],
                "both": [round(float(p), 3) for p in told.exp()[0].detach()],
            }
        )
    meanings = [
        {
            "definition": words.synsets[s.synset].definition,
            "count": s.count,
            "prior": round(float(c), 3),
        }
        for s, c in zip(senses, counts / counts.sum(), strict=True)
    ]
    return [{"meanings": meanings, "contexts": rows}]


if __name__ == "__main__":
    main()
