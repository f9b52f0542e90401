"""One text where several are meant: letters would be taken as words, silently."""

import re
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import pytest
import torch

from companion.data import Verse, WordVectors
from companion.foundations.embeddings import Embeddings, FastTextEmbeddings
from companion.foundations.embeddings import vocabulary as count_words
from companion.foundations.language_models import ClosedVocabulary
from companion.frontiers.outlook import BM25
from companion.knowledge.entity_linking import CandidateIndex
from companion.transformer.block import Decoder, TransformerConfig

from .public import callables, numbers, parameters

# Texts, or texts in lists: Sequence[str], Iterable[Sequence[str]], Sequence[tuple[str, str]].
SEVERAL = re.compile(r"(Sequence|Iterable|list)\[(([\w.]*(Sequence|Iterable|list|tuple)\[)?str\b)")
TABLE = Embeddings(words=("a", "b", "c"), vectors=numbers(3, 5))
FAST = FastTextEmbeddings(
    words=("a", "b", "c"),
    vectors=numbers(3, 5),
    contexts=None,
    losses=None,
    table=numbers(13, 5),
    min_n=3,
    max_n=6,
)
CLOSED = ClosedVocabulary(("<unk>", "</s>", "a"))
SCORE = torch.tensor([1.0, 2.0, 3.0])
VERSE = [Verse("Jonah", 2, 2, "the hell")]


def small_decoder() -> Decoder:
    return Decoder(TransformerConfig(vocab=7, dim=12, layers=1, heads=3, ff_dim=13, context=5))


def lora(f: Any) -> Any:
    g = torch.Generator().manual_seed(0)
    return f(small_decoder(), targets="query", rank=2, alpha=1.0, generator=g)


def bare(name: str) -> Any:
    """An object without its parts: a model that is not needed before the text is refused."""
    kind: Any = callables()[name]
    return object.__new__(kind)


#: Calls with one text, at each depth at which several are meant.
CASES: dict[tuple[str, str], list[Callable[[Any], Any]]] = {
    ("SwapLexicon", "pairs"): [lambda f: f(["he"])],
    ("in_sentences", "words"): [lambda f: f("art", ["This is {}."])],
    ("in_sentences", "templates"): [lambda f: f(["art"], "This is {}.")],
    ("scrub", "sites"): [lambda f: f(small_decoder(), [None], sites="blocks.*.stream", classes=2)],
    ("BPE.from_merges", "special_tokens"): [lambda f: f([], special_tokens="<end>")],
    ("BPE.train", "special_tokens"): [lambda f: f("a", vocab_size=300, special_tokens="<end>")],
    ("ClosedVocabulary.build", "texts"): [
        lambda f: f(["the cat"]),
        lambda f: f("the cat"),
        lambda f: f([["the", "cat"], "the cat"]),
    ],
    ("ClosedVocabulary.encode", "texts"): [
        lambda f: f(CLOSED, ["the cat"]),
        lambda f: f(CLOSED, "the cat"),
    ],
    ("Embeddings.restrict", "words"): [lambda f: f(TABLE, "abc")],
    ("FastTextEmbeddings.compose", "words"): [lambda f: f(FAST, "where")],
    ("FastTextEmbeddings.restrict", "words"): [lambda f: f(FAST, "abc")],
    ("TextDecoder.continue_texts", "prompts"): [lambda f: f(bare("TextDecoder"), "the cat")],
    ("TextEncoder.embed", "sentences"): [lambda f: f(bare("TextEncoder"), "the cat")],
    ("TextEncoder.tokenize", "sentences"): [lambda f: f(bare("TextEncoder"), "the cat")],
    ("TextEncoderDecoder.write_texts", "sources"): [
        lambda f: f(bare("TextEncoderDecoder"), "the cat")
    ],
    ("TextTwoStream.tokenize", "texts"): [lambda f: f(bare("TextTwoStream"), "the cat")],
    ("WordVectors.matrix", "words"): [
        lambda f: f(WordVectors(["a", "b"], numbers(2, 3, dtype=torch.float32)), "ab")
    ],
    ("add_lora", "targets"): [lora],
    ("corpus", "documents"): [lambda f: f(["the cat"] * 5), lambda f: f("the cat", min_count=1)],
    ("eda", "synonyms"): [
        lambda f: f(["a"], {"a": "bc"}, generator=torch.Generator().manual_seed(0))
    ],
    ("eda", "words"): [lambda f: f("abc", {}, generator=torch.Generator().manual_seed(0))],
    ("emoji_images", "languages"): [lambda f: f(languages="en")],
    ("encode", "tokens"): [lambda f: f("ab", count_words(["a", "b"], min_count=1))],
    ("compile_formula", "variables"): [
        lambda f: f(callables()["variable"]("a"), variables="ab"),
    ],
    ("few_shot", "shots"): [lambda f: f("ab", "c")],
    ("evaluate_analogies", "questions"): [lambda f: f(TABLE, ["abca"]), lambda f: f(TABLE, "abca")],
    ("evaluate_word_pairs", "first"): [lambda f: f(TABLE, "abc", ["b", "c", "a"], SCORE)],
    ("evaluate_word_pairs", "second"): [lambda f: f(TABLE, ["b", "c", "a"], "abc", SCORE)],
    ("group_ids", "columns"): [lambda f: f("abc"), lambda f: f(["a", "b"], "ab")],
    ("input_hessian", "targets"): [lambda f: f(small_decoder(), "down").__enter__()],
    ("part_log_probs", "texts"): [
        lambda f: f(bare("TextDecoder"), "the cat"),
        lambda f: f(bare("TextDecoder"), ["the cat"]),
    ],
    ("prune_", "targets"): [lambda f: f(small_decoder(), [], targets="down")],
    ("replace_linears", "targets"): [
        lambda f: f(torch.nn.Sequential(torch.nn.Linear(2, 3)), "query", lambda m, p: m)
    ],
    ("senses_by_translation", "senses"): [
        lambda f: f(VERSE, VERSE, word="hell", senses=["sheol", "pit"]),
        lambda f: f(VERSE, VERSE, word="hell", senses="ab"),
    ],
    ("subwords", "words"): [lambda f: f("where", buckets=7)],
    ("vocabulary", "tokens"): [lambda f: f("the cat", min_count=1)],
    ("CandidateIndex.lookup", "mentions"): [lambda f: f(CandidateIndex({"a": {"b": 1.0}}), "a", 1)],
    ("overlap_scores", "predicted"): [
        lambda f: f([["O"]], "O"),
        lambda f: f([["O"]], ["O"]),
    ],
    ("overlap_scores", "true"): [lambda f: f("O", [["O"]]), lambda f: f(["O"], [["O"]])],
    ("span_f1", "predicted"): [lambda f: f([["O"]], "O"), lambda f: f([["O"]], ["O"])],
    ("span_f1", "true"): [lambda f: f("O", [["O"]]), lambda f: f(["O"], [["O"]])],
    ("spans", "tags"): [lambda f: f("O")],
    ("tag_constraints", "tags"): [lambda f: f("O")],
    ("tag_names", "labels"): [lambda f: f("PER")],
    ("activation_patching", "sites"): [
        lambda f: f(torch.nn.Linear(2, 3), sum, torch.ones(1, 2), torch.ones(1, 2), sites="stream")
    ],
    ("attribution_patching", "sites"): [
        lambda f: f(torch.nn.Linear(2, 3), sum, torch.ones(1, 2), torch.ones(1, 2), sites="stream")
    ],
    ("page", "given"): [lambda f: f("eq:mean", {}, given="def:mean")],
    ("hashed_ngrams", "texts"): [lambda f: f("the cat")],
    ("word_errors", "reference"): [lambda f: f("the cat", ["the"])],
    ("word_errors", "hypothesis"): [lambda f: f(["the"], "the cat")],
    ("near_duplicates", "texts"): [lambda f: f("the cat")],
    ("BM25", "documents"): [lambda f: f("abc"), lambda f: f(["abc"])],
    ("BM25.scores", "queries"): [
        lambda f: f(BM25([["a"]]), "abc"),
        lambda f: f(BM25([["a"]]), ["a"]),
    ],
    ("BM25.search", "queries"): [
        lambda f: f(BM25([["a"]]), "abc", k=1),
        lambda f: f(BM25([["a"]]), ["a"], k=1),
    ],
    ("PhraseTable", "sources"): [lambda f: f("abc", ["a", "b", "c"])],
    ("PhraseTable", "targets"): [lambda f: f(["a", "b", "c"], "abc")],
    ("bleu", "hypotheses"): [lambda f: f("abc", ["a", "b", "c"])],
    ("bleu", "references"): [lambda f: f(["a", "b", "c"], "abc")],
    ("bleu_counts", "hypotheses"): [lambda f: f("abc", ["a", "b", "c"])],
    ("bleu_counts", "references"): [lambda f: f(["a", "b", "c"], "abc")],
    ("chrf", "hypotheses"): [lambda f: f("abc", ["a", "b", "c"])],
    ("chrf", "references"): [lambda f: f(["a", "b", "c"], "abc")],
    ("chrf_counts", "hypotheses"): [lambda f: f("abc", ["a", "b", "c"])],
    ("chrf_counts", "references"): [lambda f: f(["a", "b", "c"], "abc")],
    ("exact_match", "answers"): [lambda f: f(["a"], "a"), lambda f: f(["a"], ["a"])],
    ("exact_match", "predictions"): [lambda f: f("a", [["a"]])],
    ("rouge_l", "predictions"): [lambda f: f("abc", ["a", "b", "c"])],
    ("rouge_l", "references"): [lambda f: f(["a", "b", "c"], "abc")],
    ("rouge_lsum", "predictions"): [lambda f: f("a", [["a"]]), lambda f: f(["a"], [["a"]])],
    ("rouge_lsum", "references"): [lambda f: f([["a"]], "a"), lambda f: f([["a"]], ["a"])],
    ("rouge_n", "predictions"): [lambda f: f("abc", ["a", "b", "c"])],
    ("rouge_n", "references"): [lambda f: f(["a", "b", "c"], "abc")],
    ("sentence_bleu", "hypotheses"): [lambda f: f("abc", ["a", "b", "c"])],
    ("sentence_bleu", "references"): [lambda f: f(["a", "b", "c"], "abc")],
    ("text_bertscore", "candidates"): [lambda f: f(bare("TextEncoder"), "abc", ["a"])],
    ("text_bertscore", "references"): [lambda f: f(bare("TextEncoder"), ["a"], "a")],
    ("token_f1", "answers"): [lambda f: f(["a"], "a"), lambda f: f(["a"], ["a"])],
    ("token_f1", "predictions"): [lambda f: f("a", [["a"]])],
    ("word_overlap", "sentences"): [lambda f: f("abc"), lambda f: f(["abc"])],
}
#: Where one text is meant as well, and what it does.
ALLOWED = {
    ("bleu", "tokenize"): "makes several of one",
    ("bleu_counts", "tokenize"): "makes several of one",
    ("common_subsequence", "first"): "letters are symbols as well",
    ("common_subsequence", "second"): "letters are symbols as well",
    ("rouge_l", "tokenize"): "makes several of one",
    ("rouge_lsum", "tokenize"): "makes several of one",
    ("rouge_n", "tokenize"): "makes several of one",
    ("BPE.train", "texts"): "one text to learn from",
    ("BPE.encode_stream", "source"): "one part of a text",
    ("Seen", "wanted"): "made by watch alone",
    ("watch", "read"): "its letters name no site, which it says",
    ("main", "arguments"): "its letters are no commands, which argparse says",
}


def meant_for_several() -> set[tuple[str, str]]:
    found = set()
    for name, function in callables().items():
        if is_dataclass(function):
            continue  # a container holds what its maker checked
        for parameter, annotation in parameters(function).items():
            if SEVERAL.search(annotation) and "Tensor" not in annotation:
                found.add((name, parameter))
    return found


def test_every_function_that_takes_several_texts_has_an_entry() -> None:
    assert meant_for_several() ^ (CASES.keys() | ALLOWED.keys()) == set()


@pytest.mark.parametrize("name", sorted(CASES), ids=lambda name: ".".join(name))
@pytest.mark.usefixtures("own_checks")
def test_one_text_where_several_are_meant_is_refused(name: tuple[str, str]) -> None:
    # What a type checker sees of it depends on which entries it looks at.
    for call in CASES[name]:
        with pytest.raises(ValueError, match=r"several texts, got the one text|must be a list of"):
            call(callables()[name[0]])
