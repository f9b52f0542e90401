"""Byte-level BPE against the ``tokenizers`` library, and laws that hold on any text."""

import io
import json
import re
import tempfile
import tracemalloc
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from companion import data
from companion.foundations.language_models import BPE, pretokenize

END = "<|end|>"
# Few letters make many repeats and ties; the rest makes the pattern's alternatives meet.
REPETITIVE = st.text(alphabet="aab '\n\té十<|end>s", max_size=60)
# Code points that Python's Unicode tables know; a newer library may call later ones letters.
KNOWN = st.text(alphabet=st.characters(exclude_categories=("Cs", "Cn", "Co")), max_size=40)
BYTES = st.binary(max_size=80)


def library(texts: list[str], vocab_size: int, special: list[str]) -> Tokenizer:
    """The same tokenizer made by the ``tokenizers`` library."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def visible(bpe: BPE, tokenizer: Tokenizer) -> list[str]:
    """Our vocabulary in the library's spelling, by way of a saved file."""
    with tempfile.TemporaryDirectory() as folder:
        bpe.save(Path(folder) / "tokenizer.json")
        saved = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    assert saved.get_vocab_size() == tokenizer.get_vocab_size()
    return [saved.id_to_token(i) for i in range(saved.get_vocab_size())]


@pytest.fixture(scope="module")
def text() -> str:
    return data.shakespeare()[100_000:300_000]


@pytest.fixture(scope="module")
def bpe(text: str) -> BPE:
    return BPE.train(text, vocab_size=757, special_tokens=[END])


# --- the pattern ---------------------------------------------------------------------------------


def test_pieces_are_those_of_the_library_around_every_known_character() -> None:
    cutter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    different = []
    for code in range(0x110000):
        char = chr(code)
        if unicodedata.category(char) in ("Cs", "Cn", "Co"):
            continue
        probe = f"a{char}a 1{char}1 !{char}! {char}"
        ends = [piece[1][1] for piece in cutter.pre_tokenize_str(probe)]
        mine, at = [], 0
        for piece in pretokenize(probe):
            at += len(piece)
            mine.append(at)
        if ends != mine:
            different.append(f"U+{code:04X}")
    assert not different


@settings(deadline=None)
@given(KNOWN | REPETITIVE)
def test_pieces_are_those_of_the_library(text: str) -> None:
    cutter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spans = [span for _, span in cutter.pre_tokenize_str(text)]
    # The library gives spans in characters; a character cut in bytes never spans two pieces.
    assert [text[low:high] for low, high in spans] == pretokenize(text)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_pieces_joined_are_the_text(text: str) -> None:
    assert "".join(pretokenize(text)) == text


def test_no_number_lies_beyond_the_last_plane_that_is_searched() -> None:
    beyond = (chr(code) for code in range(0x20000, 0x110000))
    assert not [char for char in beyond if unicodedata.category(char) in ("Nl", "No")]


# --- training ------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(st.lists(REPETITIVE, min_size=1, max_size=4), st.integers(0, 40))
def test_merges_and_ids_are_those_of_the_library(texts: list[str], extra: int) -> None:
    plain = [text.replace(END, "") for text in texts]
    bpe = BPE.train(plain, vocab_size=257 + extra, special_tokens=[END])
    tokenizer = library(plain, 257 + extra, [END])
    assert visible(bpe, tokenizer) == [tokenizer.id_to_token(i) for i in range(len(bpe))]
    for text in plain:
        assert bpe.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids


def test_merges_and_ids_are_those_of_the_library_on_shakespeare(text: str, bpe: BPE) -> None:
    tokenizer = library([text], 757, [END])
    assert len(bpe.merges) == 500
    assert visible(bpe, tokenizer) == [tokenizer.id_to_token(i) for i in range(757)]
    other = data.bible()[:100_000]
    assert bpe.encode(other) == tokenizer.encode(other).ids


def naive_merges(pieces: list[list[int]], first: int, steps: int) -> list[tuple[int, int]]:
    """Count all pairs anew before every merge."""
    merges: list[tuple[int, int]] = []
    for product in range(first, first + steps):
        counts = Counter(pair for piece in pieces for pair in pairwise(piece))
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for piece in pieces:
            at = 0
            while at < len(piece) - 1:
                if (piece[at], piece[at + 1]) == best:
                    piece[at : at + 2] = [product]
                at += 1
    return merges


@settings(deadline=None)
@given(REPETITIVE)
def test_incremental_counts_give_the_merges_of_counting_anew(text: str) -> None:
    bpe = BPE.train(text, vocab_size=256 + 20)
    start = BPE.train("", vocab_size=256)
    pieces = [start.encode(piece) for piece in pretokenize(text)]
    assert list(bpe.merges) == naive_merges(pieces, 256, 20)


@settings(deadline=None)
@given(REPETITIVE)
def test_every_token_has_one_pair_of_parents(text: str) -> None:
    bpe = BPE.train(text, vocab_size=400)
    assert len(set(bpe.tokens)) == len(bpe.tokens)
    assert len(set(bpe.merges)) == len(bpe.merges)


def test_a_run_of_one_letter_counts_overlapping_pairs_and_merges_from_the_left() -> None:
    # "aaaaa" holds four pairs "aa", so it beats the three "bc"; it becomes aa aa a.
    bpe = BPE.train(["aaaaa", "bc", "bc", "bc"], vocab_size=257)
    assert bpe.tokens[256] == b"aa"
    assert [bpe.tokens[i] for i in bpe.encode("aaaaa")] == [b"aa", b"aa", b"a"]


def test_ties_go_to_the_smaller_pair_of_ids() -> None:
    assert BPE.train(["zy", "xw"], vocab_size=257).tokens[256] == b"xw"


def test_training_stops_where_no_pair_is_left_or_frequent_enough() -> None:
    assert BPE.train("abab abab", vocab_size=999).tokens[256:] == (b"ab", b"abab", b" abab")
    assert BPE.train("abab abab", vocab_size=999, min_frequency=2).tokens[256:] == (b"ab", b"abab")
    assert BPE.train([], vocab_size=300).tokens == BPE.train("", vocab_size=256).tokens


def test_no_pair_crosses_texts_or_pieces() -> None:
    assert len(BPE.train(["a", "b"] * 7, vocab_size=300)) == 256
    assert len(BPE.train("a1" * 7, vocab_size=300)) == 256


def test_special_tokens_are_cut_out_of_the_training_text() -> None:
    with_end = BPE.train(f"abc{END}abc{END}", vocab_size=300, special_tokens=[END])
    assert with_end == BPE.train(["abc", "abc"], vocab_size=300, special_tokens=[END])


def test_bytes_and_text_train_alike() -> None:
    text = "十年樹木 百年樹人 十年"
    assert BPE.train(text, vocab_size=270) == BPE.train(text.encode(), vocab_size=270)


# --- encoding and decoding -----------------------------------------------------------------------


@settings(deadline=None)
@given(data=BYTES)
def test_any_bytes_survive_the_round_trip(bpe: BPE, data: bytes) -> None:
    assert bpe.decode_bytes(bpe.encode(data)) == data


@settings(deadline=None)
@given(data=BYTES)
def test_bytes_survive_with_tokens_learned_from_them(data: bytes) -> None:
    bpe = BPE.train(data, vocab_size=280)
    assert bpe.decode_bytes(bpe.encode(data + data)) == data + data


@settings(deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_survives_the_round_trip(bpe: BPE, text: str) -> None:
    assert bpe.decode(bpe.encode(text)) == text
    assert bpe.encode(text) == bpe.encode(text.encode())


@settings(deadline=None)
@given(text=REPETITIVE)
def test_encoding_replays_training(text: str) -> None:
    bpe = BPE.train(text, vocab_size=300)
    start = BPE.train("", vocab_size=256)
    expected = []
    for piece in pretokenize(text):
        ids = start.encode(piece)
        for product, pair in enumerate(bpe.merges, start=256):
            at = 0
            while at < len(ids) - 1:
                if (ids[at], ids[at + 1]) == pair:
                    ids[at : at + 2] = [product]
                at += 1
        expected += ids
    assert bpe.encode(text) == expected


@settings(deadline=None)
@given(text=REPETITIVE | KNOWN)
def test_special_tokens_are_found_only_where_allowed(bpe: BPE, text: str) -> None:
    parts = (text + END + text).split(END)
    assert bpe.special_tokens[END] not in bpe.encode(text + END)
    ids = bpe.encode(text + END + text, allow_special=True)
    between: list[int] = []
    for part in parts:
        between += [*bpe.encode(part), 0]
    assert ids == between[:-1]
    assert bpe.decode(ids) == text + END + text


def test_the_longest_special_token_wins() -> None:
    bpe = BPE.train("", vocab_size=258, special_tokens=["<a>", "<a><b>"])
    assert bpe.encode("<a><b><a>", allow_special=True) == [1, 0]


def test_a_merge_that_spells_a_special_token_is_not_that_token() -> None:
    bpe = BPE.train("the the the", vocab_size=300, special_tokens=["the"])
    # The whole text is special here, so nothing is learned from it; and text stays text.
    assert len(bpe) == 257 + len(bpe.merges)
    assert 0 not in bpe.encode("the")
    other = BPE.train("they they", vocab_size=300, special_tokens=["<e>", "thex"])
    assert other.tokens[other.encode("they")[0]] == b"they"


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(BYTES | REPETITIVE.map(str.encode) | st.just(END.encode()), max_size=5).map(
        b"".join
    ),
    block=st.integers(1, 11),
    special=st.booleans(),
)
def test_streaming_gives_the_ids_of_the_whole_file(
    bpe: BPE, data: bytes, block: int, special: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text"
        path.write_bytes(data)
        streamed = list(bpe.encode_file(path, block=block, allow_special=special))
    assert [i for ids in streamed for i in ids] == bpe.encode(data, allow_special=special)
    assert all(streamed)


def test_streaming_keeps_memory_constant(bpe: BPE, tmp_path: Path) -> None:
    def peak(repeats: int) -> int:
        path = tmp_path / "text"
        path.write_bytes(b"To be, or not to be: that is the question.\n" * repeats)
        for _ in bpe.encode_file(path, block=1 << 10):
            pass  # fills the cache, which is bounded by itself
        tracemalloc.start()
        for _ in bpe.encode_file(path, block=1 << 10):
            pass
        peaked = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peaked

    # Eight times the text in less than one and a half times the memory.
    assert peak(2_400) < 1.5 * peak(300)


def test_a_long_piece_costs_less_than_its_square(bpe: BPE) -> None:
    # A heap and a linked list: 80,000 letters in a row would take minutes pair by pair.
    text = "abcdefgh" * 10_000
    assert bpe.decode(bpe.encode(text)) == text


def test_the_cache_is_bounded(bpe: BPE, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "companion.foundations.language_models._bpe"
    monkeypatch.setattr(f"{module}._CACHED_PIECES", 5)
    fresh = BPE(bpe.tokens, bpe.merges, bpe.special_tokens)
    words = "one two three four five six seven eight one two"
    assert fresh.encode(words) == bpe.encode(words)
    assert len(fresh._cache) <= 5


def test_decoding_accepts_tensors_and_shows_broken_characters(bpe: BPE) -> None:
    ids = bpe.encode("十")
    assert bpe.decode(torch.tensor(ids)) == "十"
    assert bpe.decode(ids[:1]) == "\ufffd"


# --- files ---------------------------------------------------------------------------------------


def test_a_saved_tokenizer_is_read_back_and_by_the_library(
    bpe: BPE, text: str, tmp_path: Path
) -> None:
    bpe.save(tmp_path / "tokenizer.json")
    assert BPE.load(tmp_path / "tokenizer.json") == bpe
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    sample = f"{text[:20_000]}{END}十 \x00 naïve"
    assert theirs.encode(sample).ids == bpe.encode(sample, allow_special=True)
    assert theirs.decode(bpe.encode("O, 十!")) == "O, 十!"


def test_a_tokenizer_of_the_library_is_read(tmp_path: Path) -> None:
    sample = "in the beginning God created the heaven and the earth"
    theirs = library([sample], 290, [END])
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = BPE.load(tmp_path / "tokenizer.json")
    assert ours == BPE.train(sample, vocab_size=290, special_tokens=[END])


def test_another_kind_of_tokenizer_is_refused(bpe: BPE, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    bpe.save(path)
    saved = path.read_text(encoding="utf-8")
    path.write_text(saved.replace('"add_prefix_space": false', '"add_prefix_space": true'))
    with pytest.raises(ValueError, match="no prefix space"):
        BPE.load(path)
    path.write_text(saved.replace('"type": "BPE"', '"type": "Unigram"'))
    with pytest.raises(ValueError, match="must hold a BPE model"):
        BPE.load(path)
    path.write_text(saved.replace(f'"{END}": 0', f'"{END}": 7777').replace('"id": 0', '"id": 7777'))
    with pytest.raises(ValueError, match="without a gap"):
        BPE.load(path)


def test_a_merge_that_spells_a_special_token_cannot_be_saved(tmp_path: Path) -> None:
    tokens = (b"ab", *(bytes([i]) for i in range(256)), b"ab")
    double = BPE(tokens, ((1 + 97, 1 + 98),), {"ab": 0})
    assert double.encode("ab") == [257]
    with pytest.raises(ValueError, match="two tokens are written 'ab'"):
        double.save(tmp_path / "tokenizer.json")


# --- files of others ------------------------------------------------------------------------------


def with_added(
    *added: AddedToken, path: Path, text: str = "a dog, hotdog dogs the dog"
) -> Tokenizer:
    """A tokenizer of the library with added tokens, written to a file and read again."""
    tokenizer = library([text], 290, [END])
    for token in added:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    tokenizer.save(str(path))
    return Tokenizer.from_file(str(path))


def test_a_mask_that_takes_the_space_before_it_and_a_plain_added_token(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    theirs = with_added(
        AddedToken("<mask>", lstrip=True, special=True), AddedToken("dog"), path=path
    )
    ours = BPE.load(path)
    shown = [ours.tokens[i] for i in ours.encode("a dog <mask>", allow_special=True)]
    assert shown == [b"a", b" ", b"dog", b"<mask>"]  # the space before the mask is its own
    assert ours.encode("a dog <mask>", allow_special=True) == theirs.encode("a dog <mask>").ids
    # Without special tokens "dog" is still one token, and "<mask>" is text.
    assert ours.encode("a dog <mask>")[:3] == ours.encode("a dog")
    assert ours.decode(ours.encode("a dog <mask>")) == "a dog <mask>"


ADDED_TEXT = st.lists(
    st.sampled_from(
        [" ", "  ", "\n", "\x1c", "\u3000", "<m>", "<m>x", "<l>", "<r>", "dog", "do", "g", END, "a"]
    ),
    max_size=9,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(
    text=ADDED_TEXT,
    flags=st.lists(st.tuples(*[st.booleans()] * 4), min_size=5, max_size=5),
    allow=st.booleans(),
    block=st.integers(1, 9),
)
def test_added_tokens_are_cut_as_the_library_cuts_them(
    text: str, flags: list[tuple[bool, ...]], allow: bool, block: int
) -> None:
    names = ["<m>", "<m>x", "<l>", "dog", "<r>"]
    added = [
        AddedToken(name, lstrip=left, rstrip=right, normalized=normal, special=special)
        for name, (left, right, normal, special) in zip(names, flags, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        theirs = with_added(*added, path=path)
        ours = BPE.load(path)
        ours.save(path)
        assert BPE.load(path) == ours
        saved = Tokenizer.from_file(str(path))
    for oracle in (theirs, saved):
        oracle.encode_special_tokens = not allow
        assert ours.encode(text, allow_special=allow) == oracle.encode(text).ids
    parts = [text[at : at + 2] for at in range(0, len(text), 2)]
    streamed = ours.encode_stream(parts, allow_special=allow, block=block)
    assert [i for ids in streamed for i in ids] == ours.encode(text, allow_special=allow)


@pytest.mark.parametrize("special", [False, True])
def test_an_added_token_that_a_merge_makes(special: bool, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    text = "dog dog dog"
    known = library([text], 290, [END]).token_to_id("dog")
    # The second one is written as the merge's product " dog" is; in a text it means these letters.
    theirs = with_added(
        AddedToken("dog", special=special, normalized=False),
        AddedToken("\u0120dog"),
        path=path,
        text=text,
    )
    ours = BPE.load(path)
    assert ours._added["dog"].id == known
    assert ours.tokens[known] == b"dog"
    assert ours.tokens[theirs.token_to_id("\u0120dog")] == b" dog"
    for sample in ("dog", "a dog", "hotdogs", "\u0120dog"):
        assert ours.encode(sample, allow_special=True) == theirs.encode(sample).ids
    ours.save(path)
    assert BPE.load(path) == ours


def test_a_file_without_added_tokens_or_other_optional_parts_is_read(
    bpe: BPE, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    bpe.save(path)
    document = json.loads(path.read_text(encoding="utf-8"))
    for name in ("added_tokens", "normalizer", "truncation", "padding", "post_processor"):
        del document[name]
    path.write_text(json.dumps(document), encoding="utf-8")
    ours = BPE.load(path)
    assert (ours.tokens, ours.merges, ours.special_tokens) == (bpe.tokens, bpe.merges, {})
    assert ours.encode("the dog") == bpe.encode("the dog")


def test_what_cannot_be_honored_is_refused(bpe: BPE, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with_added(AddedToken("word", single_word=True), path=path)
    with pytest.raises(ValueError, match="'word' is matched as a single word only"):
        BPE.load(path)
    bpe.save(path)
    saved = json.loads(path.read_text(encoding="utf-8"))
    for name, value in (("dropout", 0.1), ("end_of_word_suffix", "</w>")):
        path.write_text(json.dumps({**saved, "model": {**saved["model"], name: value}}))
        with pytest.raises(ValueError, match=f"a model with {name} = "):
            BPE.load(path)
    vocab = {**saved["model"]["vocab"]}
    del vocab[f"{chr(0x120)}t"]
    path.write_text(json.dumps({**saved, "model": {**saved["model"], "vocab": vocab}}))
    with pytest.raises(ValueError, match="must join two tokens"):
        BPE.load(path)
    twice = {**saved["model"]["vocab"], "two": 300}
    path.write_text(json.dumps({**saved, "model": {**saved["model"], "vocab": twice}}))
    with pytest.raises(ValueError, match="have the one id 300"):
        BPE.load(path)
    strange = {**saved["model"]["vocab"], "十": 757}
    path.write_text(json.dumps({**saved, "model": {**saved["model"], "vocab": strange}}))
    with pytest.raises(ValueError, match="'十' is not written in the characters of bytes"):
        BPE.load(path)


def test_the_two_files_of_gpt2_are_read(text: str, tmp_path: Path) -> None:
    # transformers writes and reads the files as GPT-2's release has them.
    theirs = library([text], 757, [END])
    vocab, merges = (Path(f) for f in theirs.model.save(str(tmp_path)))
    ours = BPE.load_gpt2(vocab, merges)
    assert ours.special_tokens == {END: theirs.token_to_id(END)}
    sample = f"{text[:5_000]}{END}十 \x00 naïve"
    assert ours.encode(sample, allow_special=True) == theirs.encode(sample).ids
    assert ours == BPE.train(text, vocab_size=757, special_tokens=[END])
    reference = transformers.GPT2Tokenizer(str(vocab), str(merges), unk_token=END, eos_token=END)
    assert ours.encode(sample, allow_special=True) == reference.encode(sample)
    merges.write_text("ab cd\n")
    with pytest.raises(ValueError, match=r"merges.txt: the merge 'ab cd' must join two tokens"):
        BPE.load_gpt2(vocab, merges)


def test_merges_given_as_byte_pairs_make_the_tokenizer(bpe: BPE) -> None:
    pairs = [(bpe.tokens[left], bpe.tokens[right]) for left, right in bpe.merges]
    assert BPE.from_merges(pairs, special_tokens=[END]) == bpe
    assert len(BPE.from_merges([])) == 256
    # Two ways to one string share its token.
    double = BPE.from_merges([(b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"a", b"bc")])
    assert len(double) == 256 + 3
    assert double.encode("abc") == [258]
    with pytest.raises(ValueError, match="must join bytes or what earlier pairs made"):
        BPE.from_merges([(b"ab", b"c")])
    with pytest.raises(ValueError, match="comes twice"):
        BPE.from_merges([(b"a", b"b"), (b"a", b"b")])
    with pytest.raises(ValueError, match="special tokens must differ"):
        BPE.from_merges([], special_tokens=[END, END])


@settings(max_examples=60, deadline=None)
@given(
    text=REPETITIVE | KNOWN, sizes=st.lists(st.integers(0, 5), max_size=40), special=st.booleans()
)
def test_parts_of_any_size_give_the_ids_of_the_whole_text(
    bpe: BPE, text: str, sizes: list[int], special: bool
) -> None:
    whole = bpe.encode(text, allow_special=special)
    raw, at, parts = text.encode(), 0, []
    for size in [*sizes, len(raw)]:
        parts.append(raw[at : at + size])
        at += size
    for source in (parts, iter([text]), text, raw, io.BytesIO(raw), io.StringIO(text, newline="")):
        streamed = bpe.encode_stream(source, allow_special=special, block=3)
        assert [i for ids in streamed for i in ids] == whole
    # Text and bytes in turn, where the bytes end inside a character.
    mixed = [*([text, raw] * 2), raw[:-1], text]
    joined = b"".join(part.encode() if isinstance(part, str) else part for part in mixed)
    streamed = bpe.encode_stream(mixed, allow_special=special, block=3)
    assert [i for ids in streamed for i in ids] == bpe.encode(joined, allow_special=special)


def test_an_open_file_without_lines_streams_in_constant_memory(bpe: BPE, tmp_path: Path) -> None:
    def peak(repeats: int) -> int:
        path = tmp_path / "text"
        path.write_text("To be, or not to be: that is the question. " * repeats)
        peaks = []
        for _ in range(2):  # the first time fills the cache, which is bounded by itself
            with path.open(encoding="utf-8") as file:
                tracemalloc.start()
                for _ in bpe.encode_stream(file, block=1 << 10):
                    pass
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
        return peaks[-1]

    # Eight times the text in less than one and a half times the memory.
    assert peak(2_400) < 1.5 * peak(300)


# --- errors --------------------------------------------------------------------------------------


def test_errors_name_what_is_wrong(bpe: BPE, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 257, 1 special tokens and 256 bytes, got 256"):
        BPE.train("a", vocab_size=256, special_tokens=[END])
    with pytest.raises(ValueError, match="special tokens must differ"):
        BPE.train("a", vocab_size=300, special_tokens=[END, END])
    with pytest.raises(ValueError, match="must not be empty"):
        BPE.train("a", vocab_size=300, special_tokens=[""])
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at 1"):
        bpe.encode("a\ud800")
    with pytest.raises(ValueError, match=re.escape("ids must lie in [0, 757), got 757")):
        bpe.decode([3, 757])
    with pytest.raises(ValueError, match="block must be 1 or more, got 0"):
        next(bpe.encode_file(tmp_path / "missing", block=0))
    with pytest.raises(ValueError, match="block must be 1 or more, got 0"):
        next(bpe.encode_stream([], block=0))
    with pytest.raises(ValueError, match=r"special_tokens must hold several texts, got .* '<end>'"):
        BPE.train("a", vocab_size=300, special_tokens="<end>")
    with pytest.raises(ValueError, match="special_tokens must hold several texts"):
        BPE.from_merges([], special_tokens="<end>")
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at 2"):
        list(bpe.encode_stream(["b", "a\ud800"]))
    with pytest.raises(ValueError, match="255 bytes have no token, the first is 1"):
        BPE((b"\x00",), ())
    with pytest.raises(ValueError, match=r"gives b'\\x00\\x01', not a token"):
        BPE(tuple(bytes([i]) for i in range(256)), ((0, 1),))
    with pytest.raises(ValueError, match="needs a text and an id, got id 300"):
        BPE(tuple(bytes([i]) for i in range(256)), (), {END: 300})


def test_the_text_form_is_short(bpe: BPE) -> None:
    assert repr(bpe) == "BPE(757 tokens, 1 of them special)"
