"""Six small applications on real data, item by item: what each system made, and how it scored.

About 6 minutes of one core. Translation of 300 verses between two Bibles by a table of phrases;
summaries of 150 articles; 1,000 questions looked for among 1,113 passages; questions answered,
conversations and continuations by SmolLM2. Only scores are stored where a text is not free.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion import data
from companion.core import generator
from companion.frontiers import outlook as ou
from companion.knowledge.knowledge_graphs import rank
from companion.models import TextDecoder, minilm, sample, smollm2

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

NAMES = "Ada Ben Cleo Dan Eva Finn Gus Hana Ivo June Kai Lena Milo Nora Omar Pia Rosa Sam Tess Zoe"
THINGS = "drum kite lamp boat clock rope spoon violin candle ladder"
WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Words in lower case."""
    return WORD.findall(text.lower())


def digits(values: Tensor) -> str:
    """Shares as whole thousandths, in one line."""
    return " ".join(str(round(1000 * float(v))) for v in values)


def verses(number: int, learned: int) -> dict[str, Any]:
    """Verses of the King James Version, what the table makes of them, and what stands in 1901."""
    old = {(v.book, v.chapter, v.verse): v.text for v in data.bible_verses("kjv")}
    new = {(v.book, v.chapter, v.verse): v.text for v in data.bible_verses("asv")}
    both = [key for key in old if key in new]
    order = torch.randperm(len(both), generator=generator(0)).tolist()
    picked = [both[i] for i in order[: number + learned]]
    test, train = picked[:number], picked[number:]
    table = ou.PhraseTable([old[key] for key in train], [new[key] for key in train])
    index = ou.BM25([words(old[key]) for key in train])
    nearest = index.search([words(old[key]) for key in test], k=1).documents[:, 0].tolist()
    return {
        "learned": learned,
        "phrases": len(table),
        "places": [" ".join(map(str, key)) for key in test],
        "table": [table.translate(old[key]) for key in test],
        "nearest": [" ".join(map(str, train[i])) for i in nearest],
    }


def summaries(number: int) -> dict[str, Any]:
    """One sentence of each article by five rules, scored against the reference."""
    encoder = minilm()
    g = generator(0)
    articles = data.xsum()
    chosen: dict[str, list[str]] = {}
    references: list[str] = []
    for i in torch.randperm(len(articles), generator=g).tolist():
        sentences = ou.split_sentences(articles[i].document)
        if not 5 <= len(sentences) <= 40:
            continue
        tokens = [ou.rouge_tokens(s) for s in sentences]
        vectors = encoder.embed(sentences, truncate=True)
        middle = torch.nn.functional.normalize(vectors.mean(0), dim=0)
        cosines = (vectors @ vectors.T).clamp(min=0).fill_diagonal_(0)
        against = ou.rouge_n(sentences, [articles[i].summary] * len(sentences)).f1
        picks = {
            "lead": 0,
            "random": int(torch.randint(len(sentences), (1,), generator=g)),
            "TextRank, words": int(ou.pagerank(ou.word_overlap(tokens)).argmax()),
            "TextRank, MiniLM": int(ou.pagerank(cosines).argmax()),
            "nearest the mean": int((vectors @ middle).argmax()),
            "best possible": int(against.argmax()),
        }
        for name, place in picks.items():
            chosen.setdefault(name, []).append(sentences[place])
        pair = ou.mmr(vectors @ middle, vectors @ vectors.T, k=2, trade=0.7)
        chosen.setdefault("MMR, two", []).append(" ".join(sentences[j] for j in pair.sort().values))
        pair = (vectors @ middle).topk(2).indices
        chosen.setdefault("mean, two", []).append(
            " ".join(sentences[j] for j in pair.sort().values)
        )
        chosen.setdefault("lead, two", []).append(" ".join(sentences[:2]))
        references.append(articles[i].summary)
        if len(references) == number:
            break
    found: dict[str, Any] = {"articles": len(references)}
    for name, texts in chosen.items():
        found[name] = {
            "rouge_1": digits(ou.rouge_n(texts, references).f1),
            "rouge_2": digits(ou.rouge_n(texts, references, n=2).f1),
            "rouge_l": digits(ou.rouge_l(texts, references).f1),
            "bertscore": digits(ou.text_bertscore(encoder, texts, references, truncate=True).f1),
            "words": sum(len(ou.rouge_tokens(t)) for t in texts) / len(texts),
        }
    shuffled = references[1:] + references[:1]
    apart = ou.text_bertscore(encoder, references, shuffled, truncate=True).f1
    found["unrelated"] = digits(apart)
    return found


def passages(more: int) -> tuple[list[str], list[str], Tensor]:
    """Passages, questions, and which passage each question is about."""
    asked = data.questions("disflqa")
    texts = list(dict.fromkeys(q.passage for q in asked))
    place = {text: i for i, text in enumerate(texts)}
    gold = torch.tensor([place[q.passage] for q in asked])
    others = dict.fromkeys(q.passage for q in data.questions("boolq"))
    texts += [text for text in others if text not in place][:more]
    return texts, [q.question for q in asked], gold


def retrieval(more: int, number: int) -> dict[str, Any]:
    """Ranks of the right passage, by words, by vectors, and by both."""
    texts, asked, gold = passages(more)
    asked, gold = asked[:number], gold[:number]
    encoder = minilm()
    lexical = ou.BM25([words(t) for t in texts]).scores([words(q) for q in asked])
    dense = encoder.embed(asked) @ encoder.embed(texts, truncate=True).T
    both = ou.reciprocal_rank_fusion([lexical, dense.double()])
    found: dict[str, Any] = {"passages": len(texts), "questions": len(asked)}
    for name, scores in (("BM25", lexical), ("dense", dense), ("both", both)):
        ranks = rank(scores, gold).by("realistic")
        found[name] = " ".join(f"{r:g}" for r in ranks.tolist())
    return found


def in_parts(decoder: TextDecoder, prompts: list[str], tokens: int, pick: Any = None) -> list[str]:
    """Continue prompts, eight at a time."""
    made: list[str] = []
    for start in range(0, len(prompts), 8):
        part = prompts[start : start + 8]
        options = {} if pick is None else {"pick": pick}
        made += decoder.continue_texts(part, tokens=tokens, **options)
    return made


def reading(decoder: TextDecoder, number: int) -> dict[str, Any]:
    """SmolLM2 answers questions about a passage, with it, without it, and with another."""
    asked = [q for q in data.questions("disflqa") if q.answers != ("unknown",)]
    asked = [q for q in asked if len(q.passage) < 900][:number]
    other = [q.passage for q in asked[1:]] + [asked[0].passage]
    shapes: dict[str, Callable[[int], str]] = {
        "with": lambda i: f"{asked[i].passage}\nQuestion: {asked[i].question}\nShort answer:",
        "without": lambda i: f"Question: {asked[i].question}\nShort answer:",
        "other": lambda i: f"{other[i]}\nQuestion: {asked[i].question}\nShort answer:",
    }
    answers = [q.answers for q in asked]
    found: dict[str, Any] = {"questions": len(asked)}
    for name, shape in shapes.items():
        said = in_parts(decoder, [shape(i) for i in range(len(asked))], 16)
        said = [text.strip().split("\n")[0] for text in said]
        found[name] = {
            "f1": digits(ou.token_f1(said, answers)),
            "exact": digits(ou.exact_match(said, answers)),
        }
    return found


def dialogue(decoder: TextDecoder) -> dict[str, Any]:
    """Whether a name that was told is known one and three turns later."""
    names, things = NAMES.split(), THINGS.split()
    found: dict[str, Any] = {}
    for label, between in (("next turn", 0), ("three turns later", 2)):
        right, said = [], []
        for i, name in enumerate(names):
            thing = things[i % len(things)]
            talk = [
                {"role": "user", "content": f"My name is {name}, and I have bought a {thing}."},
                {"role": "assistant", "content": "Nice to meet you! How can I help?"},
            ]
            for _ in range(between):
                talk += [
                    {"role": "user", "content": "Tell me what two and three make."},
                    {"role": "assistant", "content": "Two and three make five."},
                ]
            talk.append({"role": "user", "content": "What have I bought?"})
            answer = decoder.chat(talk, tokens=24)
            right.append(thing in answer.lower())
            said.append(answer)
        found[label] = {
            "right": "".join(str(int(r)) for r in right),
            "example": said[0],
        }
    return found


def continuation(decoder: TextDecoder, number: int) -> dict[str, Any]:
    """Half a verse continued, by the likeliest words and by chance."""
    texts = [v.text for v in data.bible_verses("kjv") if 30 <= len(v.text.split()) <= 45]
    order = torch.randperm(len(texts), generator=generator(0)).tolist()[:number]
    halves = [(t.split()[:15], t.split()[15:]) for t in (texts[i] for i in order)]
    prompts = [" ".join(first) for first, _ in halves]
    found: dict[str, Any] = {"real": [" ".join(rest) for _, rest in halves], "prompts": prompts}
    found["greedy"] = in_parts(decoder, prompts, 40)
    found["sampled"] = in_parts(decoder, prompts, 40, sample(generator=generator(1)))
    return found


def main(argv: list[str] | None = None) -> None:
    """Run all six, and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verses", type=int, default=300)
    parser.add_argument("--learned", type=int, default=8000)
    parser.add_argument("--articles", type=int, default=150)
    parser.add_argument("--more", type=int, default=400, help="passages of BoolQ")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--read", type=int, default=48)
    parser.add_argument("--written", type=int, default=24)
    asked = parser.parse_args(argv)
    begin, cpu = time.perf_counter(), time.process_time()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    decoder = smollm2()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "verses": lambda: verses(asked.verses, asked.learned),
        "summaries": lambda: summaries(asked.articles),
        "retrieval": lambda: retrieval(asked.more, asked.questions),
        "dialogue": lambda: dialogue(decoder),
        "continuation": lambda: continuation(decoder, asked.written),
        "reading": lambda: reading(decoder, asked.read),
    }
    for name, part in parts.items():
        results[name] = part()
        print(name, f"{time.process_time() - cpu:.0f} s", flush=True)
    results["cpu_seconds"] = round(time.process_time() - cpu, 1)
    store("outlook", results, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
