"""Ask SmolLM2 for the missing end of facts of UMLS, with and without facts in the prompt.

About 10 minutes of one core. Each question is a test fact without its tail; the candidates are the
tail and 15 entities that are no known answer. A prompt holds no facts, eight training facts drawn
at random, eight that are retrieved (of the same relation, with the most similar heads), or seven
retrieved ones and the fact itself, which is a leak. Beside the model stand what counts facts and
what copies: popularity, rules, ComplEx, and the share of retrieved facts that end in a candidate.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion import data
from companion.core import generator
from companion.knowledge.knowledge_graphs import InverseRules, Popularity, rank, retrieval_marginal
from companion.models import TextDecoder, smollm2

sys.path.insert(0, str(Path(__file__).parent))
from _store import store
from knowledge_graphs import Graph, fit_complex

SHOWN, CANDIDATES = 8, 16
ARMS = ("none", "random", "retrieved", "leaked")


def words(name: str) -> str:
    """A name as a reader would write it."""
    return name.replace("_", " ").strip()


def sentence(graph: data.KnowledgeGraph, fact: Tensor, *, end: bool = True) -> str:
    """A fact as a sentence, or its beginning."""
    head, relation, tail = fact.tolist()
    text = f"{words(graph.entities[head])} {words(graph.relations[relation])}"
    return f"{text} {words(graph.entities[tail])}." if end else text


def similar_heads(train: Tensor, *, entities: int, relations: int) -> Tensor:
    """Jaccard similarity of entities, by the pairs (relation, tail) that they head."""
    has = torch.zeros(entities, relations * entities)
    has[train[:, 0], train[:, 1] * entities + train[:, 2]] = 1
    both = has @ has.T
    each = has.sum(1)
    return both / (each[:, None] + each - both).clamp_min(1)


def retrieve(train: Tensor, similar: Tensor, fact: Tensor, *, count: int) -> Tensor:
    """Training facts of the relation whose heads are most like the head of the question."""
    head, relation, _ = fact.tolist()
    same = train[train[:, 1] == relation]
    best = similar[head, same[:, 0]].argsort(descending=True, stable=True)
    return same[best[:count]]


@torch.no_grad()
def log_probs(text: TextDecoder, prompt: str, ends: list[str]) -> Tensor:
    """Log-probability of each end after the prompt, in nats; the prompt is read once."""
    encode = text.tokenizer.encode
    start = [text.start, *encode(prompt, add_special_tokens=False).ids]
    tails = [encode(f" {end}.", add_special_tokens=False).ids for end in ends]
    longest = max(map(len, tails))
    one = text.model.cache(1, len(start))
    first = text.model(torch.tensor([start]), cache=one, last=1)[:, -1].log_softmax(-1)
    ids = torch.zeros(len(tails), longest, dtype=torch.long)
    real = torch.zeros(len(tails), longest, dtype=torch.bool)
    for row, tail in enumerate(tails):
        ids[row, : len(tail)] = torch.tensor(tail)
        real[row, : len(tail)] = True
    many = text.model.cache(len(tails), len(start) + longest)
    for held, room in zip(one.layers, many.layers, strict=True):
        keys, values = held.held()
        room.append(keys.expand(len(tails), -1, -1, -1), values.expand(len(tails), -1, -1, -1))
    later = text.model(ids[:, :-1], cache=many).log_softmax(-1)
    logs = torch.cat([first.expand(len(tails), 1, -1), later], 1)
    return (logs.gather(-1, ids[..., None])[..., 0] * real).sum(1)


def main(argv: list[str] | None = None) -> None:
    """Ask, count, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=90)
    parser.add_argument("--epochs", type=int, default=50)
    asked = parser.parse_args(argv)
    begin = time.perf_counter()
    torch.set_num_threads(1)
    text = smollm2()
    graph = Graph("umls")
    facts, sizes = graph.facts, graph.sizes
    train = facts.train
    models = {
        "popularity": Popularity(train, **sizes),
        "inverse rules": InverseRules(train, **sizes),
        "ComplEx": fit_complex(graph, epochs=asked.epochs, seed=0),
    }
    similar = similar_heads(train, **sizes)
    g = generator(0)
    seen = {(fact[0], fact[2]) for fact in train.tolist()}
    results: dict[str, Any] = {
        "questions": asked.questions,
        "shown": SHOWN,
        "candidates": CANDIDATES,
        "rows": [],
        "example": "",
    }
    for number in torch.randperm(len(facts.test), generator=g)[: asked.questions].tolist():
        fact = facts.test[number]
        head, relation, tail = fact
        known = graph.reporting.tails(head[None], relation[None])[1]
        others = torch.ones(sizes["entities"], dtype=torch.bool)
        others[known] = False
        free = others.nonzero()[:, 0]
        drawn = free[torch.randperm(len(free), generator=g)[: CANDIDATES - 1]]
        candidates = torch.cat([tail[None], drawn])  # the truth stands first
        ends = [words(facts.entities[entity]) for entity in candidates.tolist()]
        shown = retrieve(train, similar, fact, count=SHOWN)
        some = train[torch.randperm(len(train), generator=g)[:SHOWN]]
        prompts = {
            "none": train[:0],
            "random": some,
            "retrieved": shown,
            "leaked": torch.cat([shown[: SHOWN - 1], fact[None]]),
        }
        row: dict[str, Any] = {
            "pair_seen": (int(head), int(tail)) in seen or (int(tail), int(head)) in seen,
            "answer_shown": bool((shown[:, 2] == tail).any()),
            "mentioned": bool((shown[:, ::2] == tail).any()),
        }

        def place(scores: Tensor) -> float:
            return float(rank(scores, torch.tensor(0)).by("realistic"))

        question = sentence(facts, fact, end=False)
        bare = log_probs(text, "", ends)
        for arm in ARMS:
            lines = [sentence(facts, line) for line in prompts[arm]]
            prompt = "\n".join([*lines, question])
            logs = log_probs(text, prompt, ends)
            row[arm] = place(logs)
            row[f"{arm}, less its name"] = place(logs - bare)
            if arm == "retrieved":
                # One text at a time, mixed: each of four facts alone, weighed by similarity.
                alone = [log_probs(text, f"{line}\n{question}", ends) for line in lines[:4]]
                weigh = 5 * similar[head, shown[: len(alone), 0]]
                mixed = retrieval_marginal(weigh.log_softmax(0), torch.stack(alone))
                row["marginal"] = place(mixed)
                row["marginal, less its name"] = place(mixed - bare)
                results["example"] = results["example"] or f"{prompt} ..."
        copied = (shown[:, 2][:, None] == candidates).double().mean(0)
        row["copy"] = place(copied)
        for name, model in models.items():
            with torch.no_grad():
                row[name] = place(model.tails(head[None], relation[None])[0, candidates])
        results["rows"].append(row)
        if len(results["rows"]) % 10 == 0:
            told = {
                key: round(sum(1 / r[key] for r in results["rows"]) / len(results["rows"]), 3)
                for key in row
                if not isinstance(row[key], bool)
            }
            print(len(results["rows"]), f"{time.perf_counter() - begin:.0f} s", told, flush=True)
    store("knowledge_graphs_cloze", results, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
