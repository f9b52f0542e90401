"""Decoders on SmolLM2: what they write, what search finds, and what reading ahead saves.

News articles that the model continues by 40 tokens in twelve ways, beside what people wrote; the
most likely answer to short questions, by exact search; and plain decoding against prompt lookup on
texts to copy and on texts to continue. About 20 minutes of one core.
"""

import argparse
import time
from typing import Any

import torch
from _store import store
from torch import Tensor

from companion import data
from companion.core import generator
from companion.generation import decoding as de
from companion.models import TextDecoder, generate, sample, smollm2

PROMPT, NEW = 32, 40
SAMPLERS: dict[str, dict[str, float]] = {
    "sampling": {},
    "temperature 0.7": {"temperature": 0.7},
    "top-k 40": {"top_k": 40},
    "top-p 0.95": {"top_p": 0.95},
    "top-p 0.8": {"top_p": 0.8},
    "min-p 0.1": {"min_p": 0.1},
    "typical 0.9": {"typical": 0.9},
    "eta 0.001": {"eta": 0.001},
    "top-n-sigma 1": {"top_n_sigma": 1.0},
}
QUESTIONS = (
    "Write a short sentence about the sea.",
    "What is the capital of France?",
    "Name three kinds of fruit.",
    "Why is the sky blue?",
    "Tell me something about yourself.",
    "Describe a rainy day.",
    "What should I read tonight?",
    "Give me a title for a story about a fox.",
)


def surprise(model: Any, prompts: Tensor, new: Tensor) -> Tensor:
    """Mean surprise of each continuation, in nats a token."""
    text = torch.cat([prompts, new], 1)
    with torch.no_grad():
        logs = model(text[:, :-1], last=new.shape[1]).log_softmax(-1)
    return -logs.gather(2, new[..., None])[..., 0].mean(1)


def describe(model: Any, prompts: Tensor, new: Tensor) -> dict[str, Any]:
    """Numbers of one set of texts."""
    nats = torch.cat(
        [surprise(model, p, n) for p, n in zip(prompts.split(16), new.split(16), strict=True)]
    )
    rows = new.tolist()
    return {
        "nats": round(float(nats.mean()), 4),
        "nats_error": round(float(nats.std()) / len(nats) ** 0.5, 4),
        "distinct4": round(de.distinct_ngrams(rows, 4), 4),
        "distinct1": round(de.distinct_ngrams(rows, 1), 4),
        "looping": round(sum(de.distinct_ngrams([row], 4) < 0.75 for row in rows) / len(rows), 4),
        "zipf": round(de.zipf_exponent(rows, ranks=200), 4),
        "different": len({token for row in rows for token in row}),
        "texts": len(rows),
    }


def strategies(lm: TextDecoder, articles: int, seeds: int) -> dict[str, Any]:
    """Continue articles in every way."""
    assert lm.tokenizer is not None
    rows = []
    for article in data.xsum():
        ids = lm.tokenizer.encode(article.document).ids
        if len(ids) >= PROMPT + NEW and len(rows) < articles:
            rows.append([lm.start, *ids[: PROMPT + NEW]])
    text = torch.tensor(rows)
    prompts, human = text[:, : PROMPT + 1], text[:, PROMPT + 1 :]
    made: dict[str, Any] = {"people": describe(lm.model, prompts, human)}
    curves: dict[str, list[Any]] = {"temperature": [], "top_p": []}
    greedy = generate(lm.model, prompts, tokens=NEW)
    made["greedy"] = describe(lm.model, prompts, greedy)
    for beams in (4,):
        parts = [de.beam_search(lm.model, p, tokens=NEW, beams=beams) for p in prompts.split(8)]
        best = torch.cat([part.ids[:, 0] for part in parts])
        made[f"beam {beams}"] = describe(lm.model, prompts, best)
        print(beams, made[f"beam {beams}"], flush=True)
    for name, steps in SAMPLERS.items():
        texts = []
        for seed in range(seeds):
            pick = sample(generator=generator(seed), warp=de.Pipeline(**steps))
            texts.append(generate(lm.model, prompts, tokens=NEW, pick=pick))
        made[name] = describe(lm.model, prompts.repeat(seeds, 1), torch.cat(texts))
        print(name, made[name], flush=True)
    for name, values in (("temperature", (0.4, 1.3)), ("top_p", (0.5,))):
        for value in values:
            pick = sample(generator=generator(7), warp=de.Pipeline(**{name: value}))
            new = generate(lm.model, prompts, tokens=NEW, pick=pick)
            curves[name].append([value, describe(lm.model, prompts, new)])
            print(name, value, curves[name][-1][1], flush=True)
    return {"articles": len(rows), "seeds": seeds, "made": made, "curves": curves}


def modes(lm: TextDecoder, reads: int) -> list[dict[str, Any]]:
    """The most likely answer to each question, beside the greedy one."""
    assert lm.tokenizer is not None
    end = lm.tokenizer.token_to_id("<|im_end|>")  # ends a turn
    rows = []
    for question in QUESTIONS:
        prompt = lm.chat_prompt(question)
        ids = torch.tensor(lm.tokenizer.encode(prompt, add_special_tokens=False).ids)
        found = de.exact_search(lm.model, ids, stop=end, tokens=12, reads=reads, batch_size=32)
        with torch.no_grad():
            logs = lm.model(ids[None], last=1)[0, -1].log_softmax(-1)
        written = generate(lm.model, ids[None], tokens=60, stop=[end])[0]
        ended = bool((written == end).any())
        length = int((written == end).int().argmax()) + 1 if ended else len(written)
        score = -float(surprise(lm.model, ids[None], written[None, :length])[0]) * length
        rows.append(
            {
                "question": question,
                "empty": round(float(logs[end]), 3),
                "mode": lm.tokenizer.decode(found.ids.tolist()[:-1]),
                "mode_log_prob": round(found.log_prob, 3),
                "proven": found.proven,
                "reads": found.reads,
                "greedy": lm.tokenizer.decode(written[: length - ended].tolist()),
                "greedy_log_prob": round(score, 3),
                "greedy_ended": ended,
            }
        )
        print(rows[-1], flush=True)
    return rows


def speed(lm: TextDecoder, texts: int) -> list[dict[str, Any]]:
    """Plain decoding and prompt lookup, one after the other, text by text."""
    assert lm.tokenizer is not None
    rows = []
    articles = [article.document for article in data.xsum()][100 : 100 + texts]
    for kind in ("copy", "free"):
        for article in articles:
            part = " ".join(article.split()[:60])
            prompt = f"{part}\n\nAgain, word for word:\n\n{part[:60]}" if kind == "copy" else part
            ids = torch.tensor([[lm.start, *lm.tokenizer.encode(prompt).ids]])
            fast = de.Speculative(lm.model, de.PromptLookup(), ahead=8)
            made, seconds = [], []
            for model in (lm.model, fast):  # processor time: others may be at work beside
                begin = time.process_time()
                made.append(generate(model, ids, tokens=NEW))
                seconds.append(time.process_time() - begin)
            plain, ahead = seconds
            same = torch.equal(*made)
            rows.append(
                {
                    "kind": kind,
                    "ratio": round(plain / ahead, 3),
                    "tokens_a_pass": round(NEW / fast.passes, 3),
                    "plain_tokens_a_second": round(NEW / plain, 2),
                    "same": same,
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Do all of it and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--articles", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--reads", type=int, default=400)
    parser.add_argument("--texts", type=int, default=4)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    lm = smollm2()
    lm.model.requires_grad_(False)
    results = {
        "speed": speed(lm, asked.texts),
        "modes": modes(lm, asked.reads),
        **strategies(lm, asked.articles, asked.seeds),
    }
    store("decoding_strategies", results, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
