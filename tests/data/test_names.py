"""Names in news, and the nouns of WordNet: the sample by its numbers, WordNet's format by hand."""

from collections import Counter
from pathlib import Path

import pytest

import companion.data as data
from companion.data.wordnet import read_wordnet

DATA = """  1 The license stands in front, in lines that start with two spaces.
00000010 17 n 02 bank 0 riverside 0 001 @ 00000030 n 0000 | sloping land; "on the bank"; "by it"
00000020 14 n 02 bank 1 Bank_of_England 0 002 @i 00000030 n 0000 ~ 00000010 n 0000 | an "x" firm
00000030 03 n 01 thing 0 000 | a separate entity; whatever it is
"""
INDEX = """  1 License
bank n 2 1 @ 2 1 00000020 00000010
bank_of_england n 1 1 @i 1 0 00000020
riverside n 1 1 @ 1 0 00000010
thing n 1 0 1 1 00000030
"""
COUNTS = """bank%1:17:00:: 2 3
bank%1:14:01:: 1 25
bank%2:40:00:: 1 99
thing%1:03:00:: 1 7
"""


def test_the_sample_has_its_names() -> None:
    sample = data.conll_sample()
    assert len(sample) == 226
    assert sum(len(s.words) for s in sample) == 3140
    assert {s.document for s in sample} == set(range(15))
    starts = Counter(tag[2:] for s in sample for tag in s.tags if tag[0] == "B")
    assert starts == {"PER": 280, "LOC": 165, "ORG": 63, "MISC": 46}
    for s in sample:
        assert len(s.words) == len(s.tags) > 0
        for before, tag in zip(("O", *s.tags), s.tags, strict=False):
            assert tag[0] != "I" or before[1:] == tag[1:]


def test_wordnet_is_read_from_its_format() -> None:
    words = read_wordnet(DATA, INDEX, COUNTS)
    assert repr(words) == "WordNet(4 nouns, 3 meanings)"
    # The second sense of the index has the second count; verbs do not count.
    assert words.senses["bank"] == (
        data.WordSense("00000020", 25),
        data.WordSense("00000010", 3),
    )
    assert words.senses["bank of england"] == (data.WordSense("00000020", 0),)
    shore = words.synsets["00000010"]
    assert shore == data.Synset(
        words=("bank", "riverside"),
        definition="sloping land",
        examples=("on the bank", "by it"),
        field="object",
        parents=("00000030",),
        instance=False,
    )
    firm = words.synsets["00000020"]
    assert (firm.words[1], firm.field, firm.instance) == ("Bank of England", "group", True)
    assert firm.parents == ("00000030",)
    assert words.synsets["00000030"].definition == "a separate entity; whatever it is"


@pytest.mark.parametrize(
    ("what", "texts"),
    [
        ("no gloss", (DATA.replace(" | a sep", " a sep"), INDEX, COUNTS)),
        ("a meaning that is not there", (DATA, INDEX.replace("1 00000030", "1 00000031"), COUNTS)),
        ("no count", (DATA, INDEX, "bank%1:17:00:: 2\n")),
        ("an unknown field", (DATA.replace(" 17 n", " 45 n"), INDEX, COUNTS)),
    ],
)
def test_another_format_is_refused(what: str, texts: tuple[str, str, str]) -> None:
    with pytest.raises(data.CorruptDataError, match="not a line of WordNet's files"):
        read_wordnet(*texts)


def test_wordnet_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(data.MissingDataError, match="Run: apt-get install wordnet-base"):
        data.wordnet(directory=tmp_path)
    # Files of another release are not taken for these.
    (tmp_path / "wordnet").mkdir()
    for name, text in (("data.noun", DATA), ("index.noun", INDEX), ("cntlist.rev", COUNTS)):
        (tmp_path / "wordnet" / name).write_text(text)
    with pytest.raises(data.CorruptDataError, match="expected 15300280 bytes"):
        data.wordnet(directory=tmp_path)
    entry = data.data_set("wordnet")
    assert entry.wheel.system == "/usr/share/wordnet"
    monkeypatch.setenv(data.ENVIRONMENT_VARIABLE, str(tmp_path))
    with pytest.raises(data.CorruptDataError):
        data.wordnet()
    monkeypatch.delenv(data.ENVIRONMENT_VARIABLE)
    monkeypatch.setattr(data._files, "_candidates", lambda *_: [Path("/nowhere")])
    with pytest.raises(data.MissingDataError, match="or /usr/share/wordnet"):
        data.wordnet()
