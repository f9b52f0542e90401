"""Structure: automata that agree with re and three engines, exactness, and JSON that parses."""

import datetime
import json
import math
import random
import re
import uuid
from collections import defaultdict
from functools import cache
from itertools import product
from typing import Any

import jsonschema
import llguidance
import numpy as np
import outlines_core
import pytest
import torch
import xgrammar
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.core import generator
from companion.generation import control as co
from companion.models import History, TextDecoder, generate, sample, smollm2
from companion.transformer.block import Decoder, TransformerConfig

END = 2
DATE = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
REGEXES = [
    "(yes|no)",
    "20[0-9]{2}",
    DATE,
    "[01]+",
    r"(\+49|0)[0-9]{3,5}/[0-9]{4,8}",
    '"[^"\\\\\\x00-\\x1f]*"',
    "(ab?){0,3}c",
    "#[0-9a-f]{6}",
    "[^a-c]+x",
]


@cache
def smol() -> TextDecoder:
    return smollm2()


@cache
def words() -> co.Vocabulary:
    return co.Vocabulary.from_tokenizer(smol().tokenizer)


@cache
def letters() -> co.Vocabulary:
    """Token 0 ends a text; then all bytes; then longer ones."""
    more = [
        b"ab",
        b"ye",
        b"yes",
        b"no",
        b'{"',
        b'":',
        b'", "',
        b"]]",
        b"}]",
        b"true",
        b"12",
        b"\xc3\xa9",
    ]
    return co.Vocabulary([b"", *[bytes([b]) for b in range(256)], *more])


@cache
def peers() -> tuple[Any, Any, Any]:
    """A compiler of xgrammar, a tokenizer of llguidance, a vocabulary of outlines."""
    tokenizer: Any = smol().tokenizer
    names = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    plain = [name if words().tokens[i] else "" for name, i in names]
    info = xgrammar.TokenizerInfo(
        plain, vocab_type=xgrammar.VocabType.BYTE_LEVEL, vocab_size=len(plain), stop_token_ids=[END]
    )
    table = defaultdict(list)
    for number, token in enumerate(words().tokens):
        if token:
            table[token].append(number)
    return (
        xgrammar.GrammarCompiler(info, max_threads=1),
        llguidance.LLTokenizer(tokenizer.to_str(), eos_token=END),
        outlines_core.Vocabulary(END, dict(table)),
    )


def unpacked(bits: Any) -> Tensor:
    data = np.frombuffer(bytes(bits), np.uint8)
    return torch.from_numpy(np.unpackbits(data, bitorder="little")[: len(words())].astype(bool))


class XGrammar:
    def __init__(self, compiled: Any) -> None:
        self.matcher = xgrammar.GrammarMatcher(compiled)

    def mask(self) -> Tensor:
        bits = xgrammar.allocate_token_bitmask(1, len(words()))
        self.matcher.fill_next_token_bitmask(bits)
        return unpacked(bits.numpy().tobytes())

    def take(self, token: int) -> None:
        assert self.matcher.accept_token(token)


class LLGuidance:
    def __init__(self, grammar: str) -> None:
        self.matcher = llguidance.LLMatcher(peers()[1], grammar)
        assert not self.matcher.get_error()

    def mask(self) -> Tensor:
        return unpacked(self.matcher.compute_bitmask())

    def take(self, token: int) -> None:
        assert self.matcher.consume_token(token)


class Outlines:
    def __init__(self, expression: str) -> None:
        self.index = outlines_core.Index(expression, peers()[2])
        self.state = self.index.get_initial_state()

    def mask(self) -> Tensor:
        found = torch.zeros(len(words()), dtype=torch.bool)
        found[self.index.get_allowed_tokens(self.state)] = True
        return found

    def take(self, token: int) -> None:
        self.state = self.index.get_next_state(self.state, token)


def uncanonical(ours: Tensor, theirs: Tensor) -> Tensor:
    """Where a byte string has to follow, llguidance allows its canonical tokens alone: add others.

    A token that it leaves out must be a beginning of what has to follow: each token that we allow
    begins with it, or is a beginning of it.
    """
    allowed = [words().tokens[i] for i in ours.nonzero()[:, 0].tolist()]
    full = theirs.clone()
    for number in (ours & ~theirs).nonzero()[:, 0].tolist():
        token = words().tokens[number]
        full[number] = all(a.startswith(token) or token.startswith(a) for a in allowed)
    # It also leaves out the one control character that JSON allows in a string.
    delete = words().tokens.index(b"\x7f")
    full[delete] = ours[delete]
    return full


def walk(grammar: co.Grammar, tokens: list[int] | int) -> Any:
    """Masks along a text, or along random ones, with the token that is taken next."""
    rng = random.Random(tokens if isinstance(tokens, int) else 0)
    states = grammar.begin(1, torch.device("cpu"))
    for place in range(20 if isinstance(tokens, int) else len(tokens)):
        mask = grammar.allowed(states)[0]
        allowed = mask.nonzero()[:, 0].tolist()
        token = rng.choice(allowed) if isinstance(tokens, int) else tokens[place]
        assert mask[token]
        yield mask, token
        if token == END:
            return
        states = grammar.advance(states, torch.tensor([token]))


@pytest.mark.parametrize("expression", REGEXES)
def test_masks_of_expressions_are_those_of_three_engines(expression: str) -> None:
    index = co.TokenIndex.from_regex(expression, words(), stop=[END])
    seen = 0
    for seed in range(4):
        engines: list[Any] = [
            XGrammar(peers()[0].compile_regex(expression)),
            LLGuidance(llguidance.LLMatcher.grammar_from_regex(expression)),
        ]
        if expression != "[^a-c]+x":  # see below
            engines.append(Outlines(expression))
        for mask, token in walk(index, seed):
            for engine in engines:
                theirs = engine.mask()
                if isinstance(engine, LLGuidance):
                    theirs = uncanonical(mask, theirs)
                assert torch.equal(mask, theirs), (engine, words().tokens[token])
                if token != END:
                    engine.take(token)
            seen += 1
    assert seen >= 8


def test_outlines_forgets_texts_that_a_greedy_match_would_not_find() -> None:
    # abc|abcd...: its matches are leftmost-first. "stackexchange" may go on to "stackexchanged".
    expression = "[a-z]{3,12}(ing|ed)?"
    token = words().tokens.index(b"stackexchange")
    assert re.fullmatch(expression, "stackexchanged")
    ours = co.TokenIndex.from_regex(expression, words(), stop=[END]).mask(0)
    assert bool(ours[token])
    assert not bool(Outlines(expression).mask()[token])
    assert bool(XGrammar(peers()[0].compile_regex(expression)).mask()[token])


def obj(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS: list[tuple[dict[str, Any], Any]] = [
    (
        obj(name={"type": "string"}, age={"type": "integer"}, ok={"type": "boolean"}),
        {"name": 'Ada "L"', "age": 36, "ok": True},
    ),
    (
        obj(kind={"enum": ["x", "yy"]}, tags={"type": "array", "items": {"type": "string"}}),
        {"kind": "yy", "tags": ["p", "qü", "中"]},
    ),
    (
        {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3},
        [1.5, -20, 3e5],
    ),
    (
        {**obj(a={"type": "integer"}, b={"type": ["string", "null"]}), "required": ["b"]},
        {"b": None},
    ),
]


@pytest.mark.parametrize(("schema", "value"), SCHEMAS)
def test_masks_of_schemas_are_those_of_xgrammar_and_llguidance(
    schema: dict[str, Any], value: Any
) -> None:
    grammars: list[co.Grammar] = [
        co.TokenIndex.from_schema(schema, words(), stop=[END]),
        co.Pushdown.from_schema(schema, words(), stop=[END]),
    ]
    text = json.dumps(value, ensure_ascii=False)
    tokenizer: Any = smol().tokenizer
    tokens = [*tokenizer.encode(text).ids, END]
    said = json.dumps(schema)
    layout = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    for grammar in grammars:
        compiled = peers()[0].compile_json_schema(
            said, any_whitespace=False, separators=(", ", ": "), strict_mode=True
        )
        their_x = XGrammar(compiled)
        guided = json.dumps({**schema, "x-guidance": layout})
        their_l = LLGuidance(llguidance.LLMatcher.grammar_from_json_schema(guided))
        for mask, token in walk(grammar, tokens):
            x, guidance = their_x.mask(), their_l.mask()
            assert torch.equal(mask, x)
            assert torch.equal(mask, uncanonical(mask, guidance))
            if token != END:
                their_x.take(token)
                their_l.take(token)


def test_what_we_allow_and_xgrammar_does_not_is_json() -> None:
    # -0 is an integer of JSON, and an escape is one character of a bounded string.
    for schema, text in (
        ({"type": "integer"}, "-0"),
        ({"type": "string", "maxLength": 4}, '"\\n"'),
    ):
        assert json.loads(text) is not None
        compiled = peers()[0].compile_json_schema(json.dumps(schema), any_whitespace=False)
        assert not xgrammar.GrammarMatcher(compiled).accept_string(text)
        assert co.Automaton.from_regex(co.schema_regex(schema)).matches(text)


PATTERNS = [
    *REGEXES,
    "(a|b)*abb",
    "a{2,4}b?",
    "[^a-c]é?",
    "x(|y)z",
    ".",
    "(a*)*b",
    "((a|b){2}){1,2}|ab*",
    r"\d+\.\d{2}",
    r"[\w.]+@\w+",
    "[]a]+",
    r"\x41\u00e9[\t-\r]?",
    "[b-]+",
]


@pytest.mark.parametrize("expression", PATTERNS)
@settings(max_examples=60)
@given(text=st.text(alphabet='abcxyz0129-yesno"é中\n ]@.+/#A', max_size=7))
def test_an_automaton_matches_what_re_matches(expression: str, text: str) -> None:
    theirs = re.compile(expression, re.ASCII).fullmatch(text) is not None
    assert co.Automaton.from_regex(expression).matches(text) == theirs


@pytest.mark.parametrize(
    "expression",
    [
        "a*",
        "(ab|a)*b?",
        "(a*b*)*",
        "(a+b?){2}",
        "(a?b){1,3}",
        "(ab*){2,}",
        "(a|b){0}",
        "(|a)(b|)",
        "((a|b)(a|b))*",
        "(a{2,3}|b){1,2}",
        "((ab){0,2}a?)+",
        "(a*)+b{0,2}",
        "(?:(?:a|ab)(?:b|)){2}",
    ],
)
def test_repetitions_match_what_re_matches_on_all_short_texts(expression: str) -> None:
    automaton, theirs = co.Automaton.from_regex(expression), re.compile(expression)
    for size in range(9):
        for letters_ in product("ab", repeat=size):
            text = "".join(letters_)
            assert automaton.matches(text) == (theirs.fullmatch(text) is not None), text


def test_sets_may_hold_a_dash_at_their_end_and_the_first_character() -> None:
    assert co.Automaton.from_regex("[a-]{2}").matches("-a")
    assert co.Automaton.from_regex(r"[\x00b]").matches("\x00")
    assert not co.Automaton.from_regex(r"[^\x00]").matches("\x00")


def test_the_automaton_is_the_smallest() -> None:
    # By Myhill and Nerode: no two states have the same continuations.
    for expression in PATTERNS:
        automaton = co.Automaton.from_regex(expression)
        n = len(automaton.accepting)
        kinds = [int(ends) for ends in automaton.accepting]
        while True:
            keys = [
                (kinds[s], *(kinds[t] if t >= 0 else -1 for t in automaton.moves[s]))
                for s in range(n)
            ]
            order = {key: k for k, key in enumerate(dict.fromkeys(keys))}
            if len(order) == len(set(kinds)):
                break
            kinds = [order[key] for key in keys]
        assert len(set(kinds)) == n, expression


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("(a", "parenthesis is not closed"),
        ("a)", "parenthesis closes"),
        ("[a", "bracket is not closed"),
        ("*a", "nothing to repeat"),
        ("a*?", "lazy"),
        ("(?=a)", "only \\(\\?:"),
        (r"(a)\1", r"escape \\1 is not supported"),
        (r"\bword", r"escape \\b is not supported"),
        ("a{3,2}", "at least 3 and at most 2"),
        ("a^b", "at the ends"),
        ("[z-a]", "in their order"),
        (r"[^\x00-\uffff\U]", "not supported"),
        ("(a{1000}){1000}", "too large|more than"),
        ("(" * 5000 + "a" + ")" * 5000, "more than 100 groups"),
        (r"\u12_3", "4 hexadecimal digits"),
        (r"\x+1", "2 hexadecimal digits"),
        (r"\x 1", "2 hexadecimal digits"),
        (r"\01", "octal"),
        ("a{\u0663}", "begins no count"),
        ("\ud800", "no text satisfies"),
        ("[\ud800-\ud900]", "no text satisfies"),
    ],
)
def test_what_no_automaton_has_is_refused(expression: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        co.Automaton.from_regex(expression)


def test_a_token_that_ends_a_text_does_not_write_its_bytes() -> None:
    # The end of a line ends a text here, so no text goes through it: "a" has no future.
    vocabulary = co.Vocabulary([b"\n", b"a", b"b", b"]", b"[", b"[]"])
    index = co.TokenIndex.from_regex("a\\nb|b", vocabulary, stop=[0])
    assert index.mask(0).nonzero()[:, 0].tolist() == [2]
    with pytest.raises(ValueError, match="its bytes have no tokens"):
        co.TokenIndex.from_regex("a\\nb", vocabulary, stop=[0])
    optional = co.TokenIndex.from_regex("a\\n?", vocabulary, stop=[0])
    after = optional.advance(torch.tensor([0]), torch.tensor([1]))
    assert optional.allowed(after)[0].nonzero()[:, 0].tolist() == [0]
    nested = {"type": "array", "items": {"$ref": "#"}}
    with pytest.raises(ValueError, match="no text of these tokens"):
        co.Pushdown.from_schema(nested, vocabulary, stop=[3])
    fine = co.Pushdown.from_schema(nested, vocabulary, stop=[0])
    assert fine.allowed(fine.begin(1, torch.device("cpu")))[0].nonzero()[:, 0].tolist() == [4, 5]


def test_characters_without_all_their_bytes_among_the_tokens_are_not_begun() -> None:
    # é is C3 A9, ü is C3 BC: without a token for BC no text may begin with C3 but for é.
    half = co.Vocabulary([b"", b"\xc3", b"\xa9", b"a"])
    index = co.TokenIndex.from_regex("[éü]a?|aü", half, stop=[0])
    assert index.mask(0).nonzero()[:, 0].tolist() == [1]
    after = index.advance(torch.tensor([0]), torch.tensor([1]))
    assert index.allowed(after)[0].nonzero()[:, 0].tolist() == [2]
    # A token may also hold the end of one character and all of the next ones.
    spanning = co.Vocabulary([b"", b"\xc3", b"\xa9a", b"\xa9\xc3\xa9", b"\xa9ab"])
    index = co.TokenIndex.from_regex("éa|éé", spanning, stop=[0])
    after = index.advance(torch.tensor([0]), torch.tensor([1]))
    assert index.allowed(after)[0].nonzero()[:, 0].tolist() == [2, 3]


def test_a_text_may_go_on_after_it_could_have_ended() -> None:
    index = co.TokenIndex.from_regex("[01]+", letters(), stop=[0])
    one = index.advance(index.begin(1, torch.device("cpu")), torch.tensor([1 + ord("1")]))
    mask = index.allowed(one)[0]
    assert mask[0]
    assert mask[1 + ord("0")]
    assert not index.mask(0)[0]  # and not before anything is written


def test_unsatisfiable_constraints_are_errors_before_the_first_token() -> None:
    vocabulary = co.Vocabulary([b"", b"a", b"b"])
    with pytest.raises(ValueError, match="its bytes have no tokens"):
        co.TokenIndex.from_regex("ab*c", vocabulary, stop=[0])
    index = co.TokenIndex.from_regex("a{5}", vocabulary, stop=[0])
    with pytest.raises(ValueError, match="at most 4 tokens"):
        co.Constraint(index, tokens=4)
    with pytest.raises(ValueError, match="no value satisfies"):
        co.schema_regex({"enum": ["a"], "type": "integer"})
    with pytest.raises(ValueError, match="no value satisfies"):
        co.schema_regex({"type": "string", "minLength": 3, "maxLength": 2})
    with pytest.raises(ValueError, match="no text"):
        co.Automaton.from_regex("a[^\\w\\W]")
    loop = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    with pytest.raises(ValueError, match="no text of these tokens"):
        co.Pushdown.from_schema(loop, letters(), stop=[0])


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^[a-z]+$", "maxLength": 3},
        {"type": "object", "patternProperties": {"^x": {"type": "integer"}}},
        {"type": "integer", "minimum": 3},
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        {"oneOf": [{"type": "integer"}]},
        {"type": "string", "format": "email"},
        {"type": "object", "properties": {}, "required": ["a"]},
        {"minLength": 3},
        {"type": "text"},
        {"$ref": "http://example.org/x"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": []},
        {"type": "string", "pattern": "^a|b$"},
        {"type": "string", "pattern": "^[[]|b$"},
        {"type": "string", "pattern": 3},
        {"$ref": "#item", "$defs": {"x": {"$anchor": "item", "type": "integer"}}},
        {"enum": [math.nan, 1]},
        {"const": math.inf},
        {"enum": "abc"},
        {"enum": ["\ud800"]},
        {"type": "object", "properties": {"\ud800": {"type": "null"}}},
        {"type": "object", "properties": [1]},
        {"type": "object", "properties": {"a": {"type": "null"}}, "required": "a"},
        {"type": "array", "items": {"type": "null"}, "minItems": True},
        {"anyOf": []},
        {"anyOf": 5},
        {"type": "object", "properties": {1: {"type": "null"}}},
        {"type": "object", "properties": {"a": True}, "required": [["a"]]},
        {"type": 5},
        {"type": [["string"]]},
        {"enum": [1], "type": "float"},
        {"type": "string", "pattern": "\ud800"},
        {"type": "string", "pattern": "^[]a]$"},  # in ECMA-262 an empty set, and then "a]"
        {"type": "string", "pattern": "[^]"},
    ],
)
def test_what_a_schema_says_and_we_do_not_read_is_an_error(schema: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError,
        match=r"not supported|no type|no property|only ref|itself|paren|is a text|no NaN|"
        r"lists values|lists schemas|surrogate|required is a list|counts|no text|a set holds",
    ):
        co.schema_regex(schema)


def test_formats_are_those_that_python_reads() -> None:
    def accepted(form: str) -> co.Automaton:
        return co.Automaton.from_regex(co.schema_regex({"type": "string", "format": form}))

    def reads(parse: Any, text: str) -> bool:
        try:
            parse(text)
        except ValueError:
            return False
        return True

    date = accepted("date")
    for year, month, day in product(
        (0, 1, 4, 100, 400, 1900, 2000, 2026, 9999), range(14), range(33)
    ):
        text = f"{year:04}-{month:02}-{day:02}"
        assert date.matches(f'"{text}"') == reads(datetime.date.fromisoformat, text), text
    time, both = accepted("time"), accepted("date-time")
    for hour, minute, second, zone in product(
        (0, 9, 10, 19, 20, 23, 25), (0, 59, 60), (0, 59, 60), ("Z", "+00:00", "-23:59", "+25:00")
    ):
        text = f"{hour:02}:{minute:02}:{second:02}{zone}"
        fine = reads(datetime.time.fromisoformat, text)
        assert time.matches(f'"{text}"') == fine, text
        assert both.matches(f'"2024-02-29T{text}"') == fine, text
    assert not time.matches('"10:20:30"')  # RFC 3339 wants a zone
    assert time.matches('"10:20:30.125Z"')
    assert accepted("uuid").matches(f'"{uuid.UUID(int=2**127 + 5)}"')
    assert not accepted("uuid").matches(f'"{uuid.UUID(int=5).hex}"')


def test_whitespace_is_bounded() -> None:
    schema = obj(a={"type": "array", "items": {"type": "integer"}})
    strict = co.Automaton.from_regex(co.schema_regex(schema))
    loose = co.Automaton.from_regex(co.schema_regex(schema, whitespace=2))
    plain, dense, wide_ = '{"a": [1, 2]}', '{"a":[1,2]}', '{  "a"  :  [ 1 ,2  ]  }'
    assert [strict.matches(t) for t in (plain, dense, wide_)] == [True, False, False]
    assert [loose.matches(t) for t in (plain, dense, wide_)] == [True, True, True]
    assert not loose.matches('{   "a": [1, 2]}')


@pytest.mark.parametrize(
    ("pattern", "fits", "fails"),
    [
        (r"^a\\$", ["a\\"], ["a\\b", "a", "a$"]),  # an escaped backslash, then the end
        (r"^a\$", ["a$", "a$b"], ["a"]),  # an escaped dollar is no anchor
        ("^(a[)]|b)$", ["a)", "b"], ["a", "b)"]),  # a parenthesis in a set closes nothing
        ("a|b", ["xa", "by"], ["c", ""]),
        ("", ["", "x"], []),
        ("^", ["", "x"], []),
        ("$", ["", "x"], []),
        ("^$", [""], ["x"]),
        ("^.$", ["x", "\x85"], ["\n", "\r", "\u2028", "\u2029"]),
        (r"^\S$", ["x"], ["\u00a0", "\u3000", "\ufeff", " "]),
        (r"^[^\s]$", ["x"], ["\u00a0", "\u2029"]),
        (r"^\s$", ["\u00a0", "\t"], ["x"]),
    ],
)
def test_patterns_have_the_anchors_and_classes_of_json_schema(
    pattern: str, fits: list[str], fails: list[str]
) -> None:
    automaton = co.Automaton.from_regex(co.schema_regex({"type": "string", "pattern": pattern}))
    for value in fits:
        assert automaton.matches(json.dumps(value, ensure_ascii=False)), value
    for value in fails:
        assert not automaton.matches(json.dumps(value, ensure_ascii=False)), value


def test_values_that_are_listed_twice_or_are_large_are_written_once() -> None:
    automaton = co.Automaton.from_regex(
        co.schema_regex({"enum": [1, 1, 1.0, True, 'a"\\\n\u2028'], "type": ["integer", "string"]})
    )
    assert [automaton.matches(t) for t in ("1", "1.0", "true")] == [True, True, False]
    assert automaton.matches(json.dumps('a"\\\n\u2028', ensure_ascii=False))
    large = {"const": 10**400, "type": "integer"}
    assert co.Automaton.from_regex(co.schema_regex(large)).matches(str(10**400))


def test_an_object_without_properties_is_open_unless_it_is_closed() -> None:
    for more, opened in ((None, True), (True, True), (False, False)):
        schema = {"type": "object", **({} if more is None else {"additionalProperties": more})}
        assert co.is_recursive(schema) == opened


def test_a_pattern_is_one_of_the_value_and_not_of_its_escapes() -> None:
    schema = {"type": "string", "pattern": '^["a\\\\]{2}$'}
    automaton = co.Automaton.from_regex(co.schema_regex(schema))
    for value in ('"a', "\\\\", "aa"):
        assert automaton.matches(json.dumps(value))
    assert not automaton.matches('""a"')
    somewhere = co.Automaton.from_regex(co.schema_regex({"type": "string", "pattern": "b"}))
    assert somewhere.matches('"abc"')
    assert not somewhere.matches('"ac"')


class Careless(torch.nn.Module):
    """A model that knows nothing: logits at random."""

    def __init__(self, vocab: int, seed: int) -> None:
        super().__init__()
        self.inner = Decoder(
            TransformerConfig(vocab=7, dim=12, layers=1, heads=3, ff_dim=13, context=999)
        )
        self.config = TransformerConfig(
            vocab=vocab, dim=12, layers=1, heads=3, ff_dim=13, context=999
        )
        self.g = generator(seed)

    def cache(self, batch: int, capacity: int) -> Any:
        return self.inner.cache(batch, capacity)

    def forward(
        self, ids: Tensor, *, real: Any = None, cache: Any = None, last: Any = None
    ) -> Tensor:
        self.inner(ids % 7, cache=cache, last=1)
        return 3 * torch.randn(len(ids), 1, self.config.vocab, generator=self.g)


POINT = {"$ref": "#/$defs/p"}
VALID = [
    *[schema for schema, _ in SCHEMAS],
    obj(born={"type": "string", "format": "date"}, at={"type": "string", "format": "date-time"}),
    obj(
        id={"type": "string", "format": "uuid"},
        code={"type": "string", "pattern": "^[A-Z]{2}\\d{3}$"},
    ),
    {"type": "array", "items": obj(x={"type": "number"}, y={"const": "q"}), "maxItems": 2},
    {"anyOf": [{"type": "null"}, obj(only={"type": "string", "maxLength": 5})]},
    {
        "$defs": {"p": obj(x={"type": "integer"})},
        **obj(a={"$ref": "#/$defs/p"}, b={"$ref": "#/$defs/p"}),
    },
]


@pytest.mark.parametrize("schema", VALID)
def test_output_parses_and_is_valid_within_the_tokens_it_has(schema: dict[str, Any]) -> None:
    checker = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.FormatChecker(["date", "uuid"])
    )
    grammars: list[co.Grammar] = [
        co.TokenIndex.from_schema(schema, letters(), stop=[0]),
        co.Pushdown.from_schema(schema, letters(), stop=[0]),
    ]
    for seed, grammar in enumerate(grammars):
        model: Any = Careless(len(letters()), seed)
        for tokens in (90, 160):
            pick = sample(generator=generator(seed), warp=co.Constraint(grammar, tokens=tokens))
            ids = torch.zeros(6, 1, dtype=torch.long)
            for row in generate(model, ids, tokens=tokens, pick=pick, stop=[0]):
                # Random logits write bytes that are valid UTF-8, since the automaton demands it.
                checker.validate(json.loads(letters().decode(row).decode()))


def test_json_of_any_depth_parses_and_masks_are_cached() -> None:
    grammar = co.Pushdown.from_schema(True, letters(), stop=[0])
    model: Any = Careless(len(letters()), 3)
    deepest = 0
    for seed in range(3):
        constraint = co.Constraint(grammar, tokens=120)

        def nested(logits: Tensor, history: Any, constraint: Any = constraint) -> Tensor:
            logits[:, 1 + ord("[")] += 6
            masked: Tensor = constraint(logits, history)
            return masked

        pick = sample(generator=generator(seed), warp=nested)
        ids = torch.zeros(8, 1, dtype=torch.long)
        for row in generate(model, ids, tokens=120, pick=pick, stop=[0]):
            text = letters().decode(row).decode()
            json.loads(text)
            depths = [text[:k].count("[") - text[:k].count("]") for k in range(len(text) + 1)]
            deepest = max(deepest, *depths)
    assert deepest >= 2
    count = grammar.masks
    state = grammar.begin(1, torch.device("cpu"))
    for _ in range(60):
        state = grammar.advance(state, torch.tensor([1 + ord("[")]))
        grammar.allowed(state)
    assert grammar.masks <= count + 4  # sixty depths, a few masks


def test_the_pushdown_agrees_with_the_automaton_at_each_depth() -> None:
    rng = random.Random(0)
    for schema in VALID:
        one = co.TokenIndex.from_schema(schema, letters(), stop=[0])
        two = co.Pushdown.from_schema(schema, letters(), stop=[0])
        for seed in range(3):
            rng.seed(seed)
            a = one.begin(1, torch.device("cpu"))
            b = two.begin(1, torch.device("cpu"))
            for _ in range(40):
                mask = one.allowed(a)[0]
                assert torch.equal(mask, two.allowed(b)[0])
                token = torch.tensor([rng.choice(mask.nonzero()[:, 0].tolist())])
                a, b = one.advance(a, token), two.advance(b, token)
                if int(token) == 0:
                    break


def test_ambiguous_grammars_are_refused() -> None:
    from companion.generation.control._syntax import Call, Choice, Row, literal

    both = {"#": Choice((Call("a"), Call("b"))), "a": literal("xy"), "b": literal("xz")}
    with pytest.raises(ValueError, match=r"decide whether 'b' begins"):
        co.Pushdown(both, letters(), stop=[0])
    ends = {"#": Row((Call("a"), literal("x"))), "a": Choice((literal("x"), literal("xx")))}
    with pytest.raises(ValueError, match=r"decide whether 'a' ends"):
        co.Pushdown(ends, letters(), stop=[0])


# A chain of tokens: end, a, b, ab.
CHAIN = co.Vocabulary([b"", b"a", b"b", b"ab"])


def transitions() -> Tensor:
    return torch.randn(4, 4, generator=generator(5), dtype=torch.float64).softmax(-1)


def enumerated(index: co.TokenIndex, tokens: int) -> dict[tuple[int, ...], float]:
    """All texts of a chain that end in the constraint, by brute force, after token 1."""
    table, found = transitions(), {}
    queue: list[tuple[tuple[int, ...], int, float]] = [((), 0, 1.0)]
    while queue:
        path, state, p = queue.pop()
        if path and path[-1] == 0:
            found[path] = p
            continue
        if len(path) < tokens:
            for token in range(4):
                to = int(index.next[state, token])
                if to >= 0:
                    last = path[-1] if path else 1
                    queue.append(((*path, token), to, p * float(table[last, token])))
    return found


def test_backward_probabilities_need_a_law_in_each_row() -> None:
    index = co.TokenIndex.from_regex("ab", CHAIN, stop=[0])
    for wrong in (transitions().T, torch.ones(4, 4), -transitions()):
        with pytest.raises(ValueError, match="each row of transitions must be a law"):
            co.completion_probability(wrong, index, tokens=3)


def test_backward_probabilities_are_those_of_all_texts() -> None:
    index = co.TokenIndex.from_regex("(a|b)*abb(a|b){0,2}", CHAIN, stop=[0])
    beta = co.completion_probability(transitions(), index, tokens=7)
    for tokens in (4, 7):
        whole = sum(enumerated(index, tokens).values())
        assert float(beta[tokens, 0, 1]) == pytest.approx(whole, rel=1e-13)


class Chain(torch.nn.Module):
    """A Markov model, as a model of texts."""

    def __init__(self) -> None:
        super().__init__()
        self.config = TransformerConfig(vocab=4, dim=12, layers=1, heads=3, ff_dim=13, context=64)
        self.inner = Decoder(self.config)

    def cache(self, batch: int, capacity: int) -> Any:
        return self.inner.cache(batch, capacity)

    def forward(
        self, ids: Tensor, *, real: Any = None, cache: Any = None, last: Any = None
    ) -> Tensor:
        self.inner(ids, cache=cache, last=1)
        return transitions().log()[ids[:, -1:]]


def frequencies(rows: Tensor) -> dict[tuple[int, ...], float]:
    counts: dict[tuple[int, ...], float] = defaultdict(float)
    for row in rows.tolist():
        text = (*row[: row.index(0)], 0) if 0 in row else tuple(row)
        counts[text] += 1 / len(rows)
    return counts


def chi_square(
    observed: dict[tuple[int, ...], float], law: dict[tuple[int, ...], float], n: int
) -> float:
    """Standardized: about 0 ± 1.4 if the law is right."""
    large = {k: p for k, p in law.items() if n * p >= 5}
    value = sum(n * (observed.get(k, 0.0) - p) ** 2 / p for k, p in large.items())
    return (value - len(large)) / math.sqrt(len(large))


def test_looking_ahead_and_rejection_draw_from_the_conditional_and_masks_do_not() -> None:
    index = co.TokenIndex.from_regex("(a|b){1,3}b", CHAIN, stop=[0])
    law = enumerated(index, 5)
    whole = sum(law.values())
    law = {k: p / whole for k, p in law.items()}
    model: Any = Chain()
    n, prompt = 4000, torch.tensor([[1]])
    ahead = co.Lookahead(transitions(), index, tokens=5)
    pick = sample(generator=generator(1), warp=ahead)
    exact = generate(model, prompt.expand(n, 1), tokens=5, pick=pick, stop=[0])
    assert abs(chi_square(frequencies(exact), law, n)) < 6
    drawn = co.exact_sample(
        model, prompt, index, tokens=5, count=n, stop=[0], generator=generator(2), batch_size=500
    )
    assert abs(chi_square(frequencies(drawn.ids), law, n)) < 6
    masks = co.Constraint(index)
    pick = sample(generator=generator(3), warp=masks)
    local = generate(model, prompt.expand(n, 1), tokens=5, pick=pick, stop=[0])
    assert abs(chi_square(frequencies(local), law, n)) > 30
    # The product of what the masks leave is an unbiased estimate of the constraint's probability.
    assert masks.log_mass is not None
    mass = masks.log_mass.exp()
    error = float(mass.std()) / math.sqrt(n)
    assert abs(float(mass.mean()) - whole) < 4 * error


def test_the_mass_of_a_constraint_is_taken_in_float32_at_least() -> None:
    index = co.TokenIndex.from_regex("(a|b){1,3}b", CHAIN, stop=[0])
    logits = torch.tensor([[0.3, -1.7, 2.1, 0.9]])
    history = History(torch.tensor([[1]]), 1, None, torch.zeros(1, dtype=torch.bool))
    masses = []
    for dtype in (torch.bfloat16, torch.float64):
        masks = co.Constraint(index)
        masks(logits.bfloat16().to(dtype), history)
        assert masks.log_mass is not None
        masses.append(masks.log_mass.double())
    torch.testing.assert_close(*masses, rtol=1e-6, atol=1e-6)


def test_rejection_needs_a_token_that_ends_a_text(own_checks: None) -> None:
    model: Any = Chain()
    index = co.TokenIndex.from_regex("ab", CHAIN, stop=[0])
    with pytest.raises(ValueError, match="tokens that end a text"):
        co.exact_sample(
            model, torch.tensor([[1]]), index, tokens=4, count=1, stop=[], generator=generator(1)
        )


def test_masking_takes_half_where_the_conditional_takes_a_tenth() -> None:
    # First a or b, one half each; then P(ok) is 0.1 or 0.9. Grammar-aligned decoding's example.
    table = torch.tensor([[0.1, 0.9], [0.9, 0.1]])
    exact = 0.5 * table[0, 0] / (0.5 * table[0, 0] + 0.5 * table[1, 0])
    assert float(exact) == pytest.approx(0.1)
    vocabulary = co.Vocabulary([b"", b"a", b"b", b"k", b"x"])
    index = co.TokenIndex.from_regex("(a|b)k", vocabulary, stop=[0])
    p = torch.zeros(5, 5, dtype=torch.float64)
    p[0, 1] = p[0, 2] = 0.5
    p[1, 3], p[1, 4], p[2, 3], p[2, 4] = 0.1, 0.9, 0.9, 0.1
    p[3, 0] = p[4, 0] = 1.0
    beta = co.completion_probability(p, index, tokens=3)
    first = p[0] * beta[2][index.next[0].clamp(min=0).long(), torch.arange(5)] / beta[3, 0, 0]
    torch.testing.assert_close(first[1:3], torch.tensor([0.1, 0.9], dtype=torch.float64))
    masked = p[0].masked_fill(~index.mask(0), 0.0)
    torch.testing.assert_close(masked[1:3], torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_all_paths_of_a_real_model_are_those_by_hand() -> None:
    loaded = smol()
    tokenizer: Any = loaded.tokenizer
    prompt = torch.tensor(tokenizer.encode("Is the sky blue? Answer yes or no:").ids)
    index = co.TokenIndex.from_regex(" (yes|no)", words(), stop=[END])
    paths = co.constrained_paths(loaded.model, prompt, index)
    texts = [words().decode(ids) for ids in paths.ids]
    tokens = set(words().tokens)

    def spellings(text: bytes) -> int:  # each of these tokens has one number
        if not text:
            return 1
        ends = range(1, len(text) + 1)
        return sum(spellings(text[end:]) for end in ends if text[:end] in tokens)

    assert {text: texts.count(text) for text in texts} == {
        text: spellings(text) for text in (b" yes", b" no")
    }
    for ids, log_p in zip(paths.ids[:3], paths.log_p[:3].tolist(), strict=True):
        row = torch.cat([prompt, torch.tensor([*ids, END])])[None]
        with torch.no_grad():
            logs = loaded.model(row[:, :-1]).log_softmax(-1)[0]
        kept = logs[len(prompt) - 1 :].gather(1, row[0, len(prompt) :, None])
        assert float(kept.sum()) == pytest.approx(log_p, abs=2e-4)
    # Masks give a law: all that is allowed has the probability 1.
    assert float(paths.log_q.exp().sum()) == pytest.approx(1.0, abs=1e-6)
    assert bool((paths.log_q >= paths.log_p - 1e-9).all())


def test_covers_of_a_prefix_are_found_and_share_the_bytes() -> None:
    index = co.TokenIndex(co.Automaton.from_prefix(b"ab"), CHAIN)
    assert index.mask(0).tolist() == [False, True, False, True]
    assert index.mask(2).all()
    model: Any = Chain()
    paths = co.constrained_paths(model, torch.tensor([1]), index)
    table = transitions()
    by_hand = {(3,): table[1, 3], (1, 2): table[1, 1] * table[1, 2]}
    for ids, log_p in zip(paths.ids, paths.log_p, strict=True):
        assert float(log_p.exp()) == pytest.approx(float(by_hand.pop(tuple(ids))), rel=1e-6)
    assert not by_hand


def test_healing_takes_back_as_many_tokens_as_lie_in_one() -> None:
    vocabulary = co.Vocabulary([b"x", b"ht", b"tp", b"s", b"https", b":", b"://"])
    assert co.heal([0, 1, 2], vocabulary) == (([0]), b"http")
    assert co.heal([0, 5], vocabulary) == ([0], b":")
    # The last token alone might go on, and so might both: both are taken back.
    both = co.Vocabulary([b"x", b"ht", b"tp", b"tps", b"https"])
    assert co.heal([0, 1, 2], both) == ([0], b"http")
    assert co.heal([0, 4], vocabulary) == ([0, 4], b"")  # no token begins with https
    with pytest.raises(ValueError, match="tokens of the prompt"):
        co.heal([], vocabulary)
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 7\)"):
        co.heal([0, 7], vocabulary)


def test_a_constraint_follows_rows_that_change_their_places() -> None:
    index = co.TokenIndex.from_regex("(yes|no)", letters(), stop=[0])
    constraint = co.Constraint(index)
    rows = torch.tensor([[1 + ord("y")], [1 + ord("n")]])
    first = constraint.states(rows)
    swapped = constraint.states(rows.flip(0))
    assert torch.equal(first.flip(0), swapped)
    longer = torch.cat([rows, torch.tensor([[1 + ord("e")], [1 + ord("o")]])], 1)
    assert bool((constraint.states(longer) >= 0).all())
    assert int(constraint.states(torch.tensor([[1 + ord("q")]]))[0]) == -1


def test_another_pick_that_breaks_the_constraint_is_told(own_checks: None) -> None:
    index = co.TokenIndex.from_regex("(yes|no)", letters(), stop=[0])
    constraint = co.Constraint(index, tokens=9)
    wrong = History(torch.tensor([[1 + ord("q")]]), 0, None, torch.zeros(1, dtype=torch.bool))
    logits = torch.zeros(1, len(letters()))
    with pytest.raises(ValueError, match="does not allow"):
        constraint(logits, wrong)
    long = History(torch.zeros(1, 9, dtype=torch.long), 0, None, torch.zeros(1, dtype=torch.bool))
    with pytest.raises(ValueError, match="made for 9 tokens"):
        constraint(logits, long)
    before = index.next.clone()
    index.allowed(index.begin(2, torch.device("cpu")), left=3)
    assert torch.equal(index.next, before)


def test_a_table_of_masks_moves_to_a_device() -> None:
    index = co.TokenIndex.from_regex("(yes|no)", letters(), stop=[0])
    moved = index.to("meta")
    assert moved.next.is_meta
    states = moved.begin(3, torch.device("meta"))
    assert moved.allowed(states).shape == (3, len(letters()))
    assert moved.advance(states, states).shape == (3,)
