"""Control of SmolLM2: 10,000 texts under 50 schemas, orders of examples, and guidance.

About 6 minutes of one core. The texts are drawn token by token from all that the masks allow, a
model that knows nothing: what such a model can break is broken. Then four examples of pleasant and
unpleasant words in all orders, plain and calibrated. Then continuations on ten topics, guided to
different degrees, and judged by another model.
"""

import argparse
import json
import time
from itertools import permutations
from typing import Any

import jsonschema
import torch
from _store import store
from torch import Tensor

from companion import data
from companion.core import generator
from companion.generation import control as co
from companion.models import TextDecoder, generate, minilm, sample, smollm2

LABELS = (" positive", " negative")
TEMPLATE = "Word: {input}\nFeeling:{label}"
FREE = ("N/A", "[MASK]", "word")
TOPICS = (
    "the sea",
    "a football match",
    "cooking pasta",
    "the stock market",
    "a trip to Mars",
    "learning the piano",
    "a summer storm",
    "old castles",
    "training a dog",
    "a hospital at night",
)
PATTERNS = ("^[A-Z]{2}[0-9]{3}$", "^(a|bc)+$", "^\\w{1,4}$")
SCALES = (0.0, 1.0, 1.5, 2.0)


def schemas(count: int) -> list[dict[str, Any]]:
    """Make schemas at random, of all that is supported."""
    g = generator(11)

    def pick(n: int) -> int:
        return int(torch.randint(0, n, (1,), generator=g))

    def leaf() -> dict[str, Any]:
        kinds: list[dict[str, Any]] = [
            {"type": "integer"},
            {"type": "number"},
            {"type": "boolean"},
            {"type": "string", "maxLength": 1 + pick(9)},
            {"type": "string", "minLength": 1 + pick(3), "maxLength": 4 + pick(4)},
            {"type": "string", "format": ("date", "time", "uuid", "date-time")[pick(4)]},
            {
                "type": "string",
                "pattern": ("^[A-Z]{2}[0-9]{3}$", "^(a|bc)+$", "^\\w{1,4}$")[pick(3)],
            },
            {"enum": ["red", 'a "quoted" one', "天", None, 3, [1, 2]][: 2 + pick(5)]},
            {"const": ("x", 1.5, True)[pick(3)]},
            {"type": ["null", "string"], "maxLength": 4},
        ]
        return kinds[pick(len(kinds))]

    def tree(depth: int) -> dict[str, Any]:
        kind = pick(5) if depth else 4
        if kind < 2:
            names = [f"field {k}" for k in range(1 + pick(4))]
            required = [name for name in names if pick(2)]
            properties = {name: tree(depth - 1) for name in names}
            return {"type": "object", "properties": properties, "required": required}
        if kind == 2:
            low = pick(2)
            high = low + pick(3)
            return {"type": "array", "items": tree(depth - 1), "minItems": low, "maxItems": high}
        if kind == 3:
            return {"anyOf": [tree(depth - 1), tree(depth - 1)]}
        return leaf()

    made = [tree(3) for _ in range(count - 1)]
    nested = {"type": "array", "items": {"anyOf": [{"$ref": "#"}, {"type": "integer"}]}}
    return [*made, nested]


def texts(words: co.Vocabulary, grammar: Any, rows: int, tokens: int, seed: int) -> Tensor:
    """Draw texts from all that is allowed, each next token with the same chance."""
    g, end = generator(seed), grammar.stop[0]
    states = grammar.begin(rows, torch.device("cpu"))
    written = torch.full((rows, tokens), end)
    for place in range(tokens):
        for state in states.unique():  # texts in one state share their mask
            here = (states == state).nonzero()[:, 0]
            viable = grammar.allowed(state[None], left=tokens - place)[0].nonzero()[:, 0]
            drawn = torch.randint(len(viable), (len(here),), generator=g)
            written[here, place] = viable[drawn]
        states = grammar.advance(states, written[:, place])
        ended = (written[:, place] == end).all()
        if bool(ended):
            break
    return written


def structure(lm: TextDecoder, count: int, rows: int, tokens: int) -> dict[str, Any]:
    """Count texts that do not parse, or are not what the schema says."""
    words = co.Vocabulary.from_tokenizer(lm.tokenizer)
    checks = jsonschema.FormatChecker(["date", "uuid"])
    failures, total, compile_seconds, lengths = 0, 0, [], []
    for number, schema in enumerate(schemas(count)):
        begun = time.perf_counter()
        grammar: Any = (
            co.Pushdown.from_schema(schema, words, stop=lm.stop[:1])
            if co.is_recursive(schema)
            else co.TokenIndex.from_schema(schema, words, stop=lm.stop[:1])
        )
        compile_seconds.append(round(time.perf_counter() - begun, 3))
        budget = tokens
        while not bool(grammar.allowed(grammar.begin(1, torch.device("cpu")), left=budget).any()):
            budget *= 2
        judge = jsonschema.Draft202012Validator(schema, format_checker=checks)
        for row in texts(words, grammar, rows, budget, number).tolist():
            data_ = words.decode(row)
            lengths.append(len(data_))
            total += 1
            try:
                judge.validate(json.loads(data_.decode()))
            except (ValueError, jsonschema.ValidationError) as error:
                failures += 1
                print("FAILED", schema, data_, error, flush=True)
        print(number, total, failures, compile_seconds[-1], flush=True)
    return {
        "schemas": count,
        "texts": total,
        "failures": failures,
        "bytes": round(sum(lengths) / total, 1),
        "compile_seconds": compile_seconds,
    }


def label_log_probs(lm: TextDecoder, shots: list[tuple[str, str]], words: list[str]) -> Tensor:
    """Log-probabilities of the labels after each word, normalized over the labels."""
    assert lm.tokenizer is not None
    labels = [lm.tokenizer.encode(label).ids[0] for label in LABELS]
    prompts = [co.few_shot(shots, word, template=TEMPLATE, between="\n") for word in words]
    rows = [lm.tokenizer.encode(prompt).ids for prompt in prompts]
    # The examples are the same for all words: they are read once, and copied.
    shared = min(len(row) for row in rows) - 1
    while any(row[:shared] != rows[0][:shared] for row in rows):
        shared -= 1
    first = lm.model.cache(1, shared)
    found = torch.empty(len(rows), len(LABELS))
    with torch.no_grad():
        lm.model(torch.tensor([rows[0][:shared]]), cache=first, last=1)
        for length in sorted({len(row) for row in rows}):
            which = [k for k, row in enumerate(rows) if len(row) == length]
            cache = lm.model.cache(len(which), length)
            for layer, read in zip(cache.layers, first.layers, strict=True):
                layer.append(*(kept.expand(len(which), -1, -1, -1) for kept in read.held()))
            ids = torch.tensor([rows[k][shared:] for k in which])
            found[which] = lm.model(ids, cache=cache, last=1)[:, -1, labels].log_softmax(-1)
    return found


def orders(lm: TextDecoder, sets: int, tested: int) -> list[dict[str, Any]]:
    """Accuracy of four examples in all their orders."""
    test = data.weat()[0]
    pleasant, unpleasant = test.first_attribute.words, test.second_attribute.words
    found = []
    for seed in range(sets):
        g = generator(seed)
        good = [pleasant[k] for k in torch.randperm(len(pleasant), generator=g).tolist()]
        bad = [unpleasant[k] for k in torch.randperm(len(unpleasant), generator=g).tolist()]
        # Sets with two of each label, and with three of one: the majority pulls.
        more = (2, 3, 1)[seed % 3]
        shots = [(w, "positive") for w in good[:more]]
        shots += [(w, "negative") for w in bad[: 4 - more]]
        asked = good[4 : 4 + tested] + bad[4 : 4 + tested]
        truth = torch.tensor([0] * len(good[4 : 4 + tested]) + [1] * len(bad[4 : 4 + tested]))
        for order in permutations(range(4)):
            row = [shots[k] for k in order]
            logs = label_log_probs(lm, row, [*asked, *FREE])
            plain, free = logs[: len(asked)], logs[len(asked) :]
            even = co.calibrate(plain, free)
            found.append(
                {
                    "set": seed,
                    "positive": more,
                    "order": "".join("+-"[row[k][1] == "negative"] for k in range(4)),
                    "plain": round(float((plain.argmax(1) == truth).float().mean()), 4),
                    "calibrated": round(float((even.argmax(1) == truth).float().mean()), 4),
                    "free": round(float(free.exp().mean(0)[0]), 4),
                    "said_positive": round(float((plain.argmax(1) == 0).float().mean()), 4),
                }
            )
        print(seed, found[-1], flush=True)
    return found


def guided(lm: TextDecoder, rows: int, tokens: int) -> list[dict[str, Any]]:
    """Continue texts on topics, and let another model say how near they are to their topic."""
    assert lm.tokenizer is not None
    judge, found = minilm(), []
    topics = judge.embed(list(TOPICS))
    for scale in SCALES:
        near, seen, right = [], [], []
        for number, topic in enumerate(TOPICS):
            ids = torch.tensor([lm.tokenizer.encode(f"A short text about {topic}:\n").ids])
            plain = torch.tensor([lm.tokenizer.encode("A short text:\n").ids])
            warp = co.Guidance(lm.model, scale=scale, prompt=plain)
            pick = sample(generator=generator(number), warp=warp)
            many = ids.expand(rows, -1)
            new = generate(lm.model, many, tokens=tokens, pick=pick)
            continued = [lm.tokenizer.decode(row) for row in new.tolist()]
            same = judge.embed(continued) @ topics.T
            near.append(same[:, number])
            right.append((same.argmax(1) == number).float())
            before = plain.expand(rows, -1)
            with torch.no_grad():
                logits = lm.model(torch.cat([before, new[:, :-1]], 1), last=tokens)
            logs = logits.log_softmax(-1)
            seen.append(-logs.gather(2, new[..., None])[..., 0].mean(1))
        cosines, surprises, hits = torch.cat(near), torch.cat(seen), torch.cat(right)
        n = len(cosines) ** 0.5
        found.append(
            {
                "scale": scale,
                "cosine": round(float(cosines.mean()), 4),
                "cosine_error": round(float(cosines.std()) / n, 4),
                "topic": round(float(hits.mean()), 4),
                "topic_error": round(float(hits.std()) / n, 4),
                "nats": round(float(surprises.mean()), 4),
                "nats_error": round(float(surprises.std()) / n, 4),
                "texts": len(cosines),
            }
        )
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schemas", type=int, default=50)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--sets", type=int, default=6)
    parser.add_argument("--tested", type=int, default=10)
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--new", type=int, default=24)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    lm = smollm2()
    results = {
        "guided": guided(lm, chosen.texts, chosen.new),
        "orders": orders(lm, chosen.sets, chosen.tested),
        "structure": structure(lm, chosen.schemas, chosen.rows, chosen.tokens),
    }
    store("control", results, seed=0, seconds=time.perf_counter() - begun)


if __name__ == "__main__":
    main()
