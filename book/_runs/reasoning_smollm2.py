"""Ask SmolLM2-135M-Instruct for sums, word problems, logic, and common sense, by log-probability.

About seven minutes of one core of its own, and 48 where eight such runs share two. Sums and the
word problems of ASDiv have an answer of one digit; what is kept is the distribution over the ten
digits where the answer is to stand: at once, after exemplars with their answers, and after
exemplars with a rationale, where the model first writes one of its own. For LogiQA and PIQA each
choice is scored as what follows the question, with and without the passage. Then: how often the
model completes an ASDiv question that was cut off (a probe for contamination), and products of two
numbers with and without a calculator in the loop. No text of the data is stored.
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from companion import data
from companion.core import generator
from companion.frontiers.reasoning import Calculator, read_number
from companion.models import Pick, TextDecoder, generate, greedy, smollm2

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

SHOWN = (
    ("Tom has 3 pens. He buys 4 more. How many pens does he have?", "3 + 4 = 7", 7),
    ("Ann had 9 figs. She ate 4 of them. How many figs are left?", "9 - 4 = 5", 5),
    ("There are 2 bags with 3 nuts in each. How many nuts are there?", "2 * 3 = 6", 6),
)
PRODUCTS = ((12, 13), (25, 31))
WAYS = ("plain", "answers", "rationale")


def some_of(items: Sequence[Any], number: int, seed: int = 0) -> list[Any]:
    """A sample without replacement, in the order of the data."""
    order = torch.randperm(len(items), generator=generator(seed))[:number]
    return [items[i] for i in sorted(order.tolist())]


def column(values: Sequence[float], digits: int = 5) -> str:
    """Numbers in one string."""
    return " ".join(f"{value:.{digits}f}".rstrip("0").rstrip(".") or "0" for value in values)


class Reader:
    """A model that has read the beginning of all prompts, once."""

    def __init__(self, decoder: TextDecoder, beginning: str = "") -> None:
        assert decoder.tokenizer is not None
        self.model, self.tokenizer = decoder.model, decoder.tokenizer
        self.cache = decoder.model.cache(1, 1500)
        self.read([decoder.start, *self.ids(beginning)])
        self.kept = self.cache.length

    def ids(self, text: str) -> list[int]:
        """Tokens of a text."""
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return found

    @torch.no_grad()
    def read(self, ids: Sequence[Any], last: int = 1) -> torch.Tensor:
        """Go on reading; logarithms of what follows each of the last tokens."""
        logits = self.model(torch.tensor([list(ids)]), cache=self.cache, last=last)
        return logits[0].double().log_softmax(-1)

    def digits(self, prompt: str) -> list[float]:
        """Probabilities of the ten digits as the next token."""
        law = self.read(self.ids(prompt))[-1].exp()
        self.cache.truncate(self.kept)
        places = [self.tokenizer.token_to_id(str(digit)) for digit in range(10)]
        found: list[float] = law[places].tolist()
        return found

    def write(self, prompt: str, tokens: int, pick: Pick = greedy) -> str:
        """Write on to the end of the line."""
        ids = torch.tensor([self.ids(prompt)])
        stop = self.ids("\n")
        made = generate(self.model, ids, tokens=tokens, pick=pick, cache=self.cache, stop=stop)
        self.cache.truncate(self.kept)
        return str(self.tokenizer.decode(made[0].tolist())).split("\n")[0]

    def scores(self, prompt: str, texts: Sequence[str]) -> list[float]:
        """Log-probability of each text after the prompt, which is read once."""
        first = self.read(self.ids(prompt))[-1]
        length = self.cache.length
        found = []
        for text in texts:
            ids = self.ids(text)
            rows = first[None]
            if len(ids) > 1:
                rows = torch.cat([rows, self.read(ids[:-1], last=len(ids) - 1)])
            found.append(float(rows[range(len(ids)), ids].sum()))
            self.cache.truncate(length)
        self.cache.truncate(self.kept)
        return found


def story(question: data.Question) -> str:
    """The text of a word problem."""
    return f"{question.passage.strip()} {question.question.strip()}"


def exemplars(way: str) -> str:
    """What stands before all questions."""
    shown = ""
    for text, rationale, answer in SHOWN if way != "plain" else ():
        reason = f"Reasoning: {rationale}\n" if way == "rationale" else ""
        shown += f"Question: {text}\n{reason}Answer: {answer}\n\n"
    return shown


def word_problems(decoder: TextDecoder, questions: Sequence[str]) -> dict[str, list[list[float]]]:
    """The distribution over digits of each question, in three ways."""
    found: dict[str, list[list[float]]] = {}
    for way in WAYS:
        reader = Reader(decoder, exemplars(way))
        found[way] = []
        for question in questions:
            asked = f"Question: {question}\n"
            if way == "rationale":
                asked += "Reasoning:"
                asked += reader.write(asked, 24) + "\n"
            found[way].append(reader.digits(asked + "Answer: "))
    return found


def laws(found: dict[str, list[list[float]]], right: Sequence[int]) -> dict[str, Any]:
    """What is stored of distributions over digits."""
    flat = {way: column([p for row in rows for p in row], 6) for way, rows in found.items()}
    return {"right": column(right), **flat}


def choices(decoder: TextDecoder, questions: Sequence[data.Question], way: str) -> dict[str, Any]:
    """Log-probability of each choice, and its length in characters."""
    reader, scores = Reader(decoder), []
    for q in questions:
        before = f"{q.passage.strip()}\n" if way == "passage" else ""
        asked = f"{before}Question: {q.question.strip()}\nAnswer:"
        scores += reader.scores(asked, [f" {choice}" for choice in q.choices])
    return {
        "choices": len(questions[0].choices),
        "right": column([q.choices.index(q.answers[0]) for q in questions]),
        "scores": column(scores, 3),
        "characters": column([len(c) for q in questions for c in q.choices]),
    }


def completed(decoder: TextDecoder, questions: Sequence[str]) -> dict[str, Any]:
    """How often the last four words of a question follow exactly from the others, greedily."""
    reader, hits = Reader(decoder), 0
    for question in questions:
        words = question.split()
        written = reader.write(" ".join(words[:-4]), 10)
        hits += written.split()[:4] == words[-4:]
    return {"questions": len(questions), "completed": hits}


def products(decoder: TextDecoder, number: int) -> dict[str, Any]:
    """Products of two numbers of two digits, with a calculator in the loop and without."""
    g = generator(5)
    asked = torch.randint(11, 100, (number, 2), generator=g).tolist()
    shown = ""
    for a, b in PRODUCTS:
        shown += f"Question: What is {a} times {b}?\nAnswer: <<{a}*{b}={a * b}>> {a * b}\n\n"
    reader = Reader(decoder, shown)
    found: dict[str, Any] = {"products": number}
    for way in ("alone", "calculator"):
        right = called = 0
        for a, b in asked:
            tool = Calculator(reader.tokenizer.decode, reader.ids)
            pick = tool if way == "calculator" else greedy
            written = reader.write(f"Question: What is {a} times {b}?\nAnswer:", 24, pick)
            right += read_number(written) == a * b
            called += way == "calculator" and tool.calls[0][:1] == [f"{a}*{b}"]
        print(way, written, flush=True)
        found[way] = right
        if way == "calculator":
            found["called"] = called
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--asdiv", type=int, default=100)
    parser.add_argument("--logiqa", type=int, default=50)
    parser.add_argument("--piqa", type=int, default=200)
    parser.add_argument("--cut", type=int, default=64)
    parser.add_argument("--products", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.time()
    decoder = smollm2()
    results: dict[str, Any] = {}

    def say(name: str) -> None:
        print(f"{name} {time.time() - started:.0f}s", flush=True)

    results["products"] = products(decoder, args.products)
    say(f"products {results['products']}")
    pairs = [(a, b) for a in range(10) for b in range(10) if a + b < 10]
    sums = word_problems(decoder, [f"What is {a} + {b}?" for a, b in pairs])
    results["sums"] = laws(sums, [a + b for a, b in pairs])
    say("sums")
    asdiv = data.questions("asdiv")
    one = [q for q in asdiv if re.fullmatch(r"\d( .*)?", q.answers[0])]
    chosen = some_of(one, args.asdiv)
    found = word_problems(decoder, [story(q) for q in chosen])
    results["asdiv"] = laws(found, [int(q.answers[0][0]) for q in chosen])
    results["asdiv"]["of"] = len(one)
    say("asdiv")
    piqa = some_of(data.questions("piqa"), args.piqa)
    results["piqa"] = choices(decoder, piqa, "question")
    say("piqa")
    results["cut"] = completed(decoder, [story(q) for q in some_of(asdiv, args.cut, 1)])
    say(f"cut {results['cut']}")
    logiqa = some_of(data.questions("logiqa"), args.logiqa)
    for way in ("question", "passage"):
        results[f"logiqa {way}"] = choices(decoder, logiqa, way)
        say(f"logiqa {way}")
    store("reasoning_smollm2", results, seed=0, seconds=time.time() - started)


if __name__ == "__main__":
    main()
