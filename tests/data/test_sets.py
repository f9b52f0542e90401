"""The data sets against published numbers and properties."""

import math
import re
import statistics
import unicodedata
from pathlib import Path

import gensim.models
import numpy as np
import pytest
import sklearn.datasets
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor

import companion.data as data
from companion.data.vectors import read_word2vec


@pytest.fixture(scope="module")
def glove() -> data.WordVectors:
    return data.glove()


@pytest.fixture(scope="module")
def news() -> data.WordVectors:
    return data.word2vec_news()


def analogy(wv: data.WordVectors, a: str, b: str, c: str) -> tuple[str, float]:
    """The word nearest by cosine to b - a + c, the three words excluded."""
    unit = wv.vectors / wv.vectors.norm(dim=1, keepdim=True)
    target = wv.vector(b) - wv.vector(a) + wv.vector(c)
    scores = unit @ (target / target.norm())
    scores[[wv.index[word] for word in (a, b, c)]] = -math.inf
    best = int(scores.argmax())
    return wv.words[best], float(scores[best])


# Word vectors


def test_glove_has_the_published_shape_and_first_vector(glove: data.WordVectors) -> None:
    assert glove.vectors.shape == (400_000, 50)
    assert glove.vectors.dtype == torch.float32
    assert (len(glove), glove.dim) == (400_000, 50)
    assert list(glove.words[:4]) == ["the", ",", ".", "of"]
    # The first line of Stanford's glove.6B.50d.txt.
    published = torch.tensor([0.418, 0.24968, -0.41242, 0.1217, 0.34527])
    assert torch.equal(glove.vector("the")[:5], published)


def test_king_minus_man_plus_woman_is_queen(
    glove: data.WordVectors, news: data.WordVectors
) -> None:
    assert analogy(glove, "man", "king", "woman") == ("queen", pytest.approx(0.861, abs=5e-4))
    assert analogy(news, "man", "king", "woman") == ("queen", pytest.approx(0.712, abs=5e-4))
    assert analogy(glove, "france", "paris", "japan")[0] == "tokyo"


def test_word2vec_news_equals_what_gensim_reads(news: data.WordVectors) -> None:
    assert news.vectors.shape == (26_423, 300)
    path = data.locate("word2vec_news", "we/data/GoogleNews-vectors-negative300-bolukbasi.bin")
    reference = gensim.models.KeyedVectors.load_word2vec_format(path, binary=True)
    assert list(news.words) == reference.index_to_key
    assert np.array_equal(news.vectors.numpy(), reference.vectors)


def test_glove_agrees_with_people_on_wordsim353(glove: data.WordVectors) -> None:
    pairs = data.word_similarity("wordsim353")
    first = glove.matrix([word.lower() for word in pairs.first])
    second = glove.matrix([word.lower() for word in pairs.second])
    cosine = torch.nn.functional.cosine_similarity(first, second)
    assert spearmanr(cosine.numpy(), pairs.score.numpy()).statistic == pytest.approx(0.5, abs=0.01)


def test_writing_to_mapped_vectors_leaves_the_file_alone(glove: data.WordVectors) -> None:
    path = data.locate("glove", "data/glove_6B_50d_emb.npy")
    before, stamp = path.read_bytes()[:4096], path.stat().st_mtime_ns
    copy = data.glove()
    copy.vectors[0] += 1
    assert path.read_bytes()[:4096] == before
    assert path.stat().st_mtime_ns == stamp
    assert not torch.equal(copy.vectors[0], glove.vectors[0])


def test_word_vectors_name_what_is_wrong(glove: data.WordVectors) -> None:
    with pytest.raises(KeyError, match="'King' is not among the 400000 words"):
        glove.vector("King")
    with pytest.raises(KeyError, match="King, Queen"):
        glove.matrix(["the", "King", "Queen"])
    with pytest.raises(ValueError, match="3 words, but 2 vectors"):
        data.WordVectors(["a", "b", "c"], torch.zeros(2, 5))
    with pytest.raises(ValueError, match="1 words occur more than once"):
        data.WordVectors(["a", "a"], torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"count must be in 1\.\.400000, got 0"):
        glove.head(0)
    assert "king" in glove
    assert "King" not in glove
    assert 7 not in glove
    assert repr(glove.head(5)) == "WordVectors(5 words, 50 dimensions)"


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters=" \n"), min_size=1),
        min_size=1,
        max_size=7,
        unique=True,
    ),
    st.integers(1, 5),
    st.sampled_from([b"", b"\n"]),
)
def test_word2vec_reader_inverts_a_writer(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], dim: int, end: bytes
) -> None:
    vectors = torch.arange(len(words) * dim, dtype=torch.float32).reshape(len(words), dim) / 7
    content = f"{len(words)} {dim}\n".encode()
    for word, vector in zip(words, vectors, strict=True):
        content += word.encode() + b" " + vector.numpy().tobytes() + end
    path = tmp_path_factory.mktemp("word2vec") / "vectors.bin"
    path.write_bytes(content)
    read_words, read_vectors = read_word2vec(path)
    assert read_words == words
    assert torch.equal(read_vectors, vectors)
    path.write_bytes(content[: -len(end) - 1])
    with pytest.raises(ValueError, match=f"ends in record {len(words) - 1} of {len(words)}"):
        read_word2vec(path)


# Benchmarks


@pytest.mark.parametrize(
    ("name", "pairs", "low", "high"),
    [
        ("wordsim353", 353, 0, 10),
        ("simlex999", 999, 0, 10),
        ("men", 2997, 0, 50),
        ("mturk771", 770, 1, 5),
        ("rg65", 65, 0, 4),
        ("rw", 2034, 0, 10),
        ("tr9856", 9856, 0, 1),
    ],
)
def test_similarity_sets_have_their_size_and_scale(
    name: str, pairs: int, low: float, high: float
) -> None:
    wp = data.word_similarity(name)
    assert len(wp) == pairs
    assert wp.score.dtype == torch.float64
    assert low <= wp.score.min()
    assert wp.score.max() <= high
    # The range is used: another column read by mistake would not fill it.
    assert wp.score.max() - wp.score.min() > 0.8 * (high - low)
    assert all(word and word == word.strip() for word in (*wp.first, *wp.second))


def test_similarity_rows_stay_together() -> None:
    wp = data.word_similarity("wordsim353")
    row = list(zip(wp.first, wp.second, strict=True)).index(("tiger", "cat"))
    assert wp.score[row] == 7.35
    rg = data.word_similarity("rg65")
    assert (rg.first[4], rg.second[4], float(rg.score[4])) == ("cushion", "pillow", 3.84)
    with pytest.raises(ValueError, match="1 first words, 2 second words, 1 scores"):
        data.WordPairs(["a"], ["b", "c"], torch.zeros(1))
    assert data.WORD_SIMILARITY[:3] == ("wordsim353", "simlex999", "men")


def test_analogy_sets_have_the_published_sizes() -> None:
    google = data.analogies()
    assert sum(len(section) for section in google.values()) == 19_544
    assert len(google) == 14
    semantic = [name for name in google if not name.startswith("gram")]
    assert sum(len(google[name]) for name in semantic) == 8_869
    assert google["capital-common-countries"][0] == ("Athens", "Greece", "Baghdad", "Iraq")
    assert google["family"][0] == ("boy", "girl", "brother", "sister")
    assert {name: len(s) for name, s in data.analogies("msr").items()} == {"all": 8_000}


# Text


def test_shakespeare_has_38_plays_and_known_lines() -> None:
    plays = data.shakespeare_plays()
    assert len(plays) == 38
    assert "Measure for Measure" in plays  # its file has no title
    assert not [title for title in plays if title.startswith("ACT")]
    assert "To be, or not to be: that is the question:" in plays["Hamlet"]
    text = data.shakespeare()
    assert 4.9e6 < len(text) < 5.0e6
    assert not set("#*_\\") & set(text)
    assert not re.search(r" $", text, flags=re.M)
    marked = data.shakespeare(markup=True)
    assert "**HAMLET**" in marked
    words = re.compile(r"[A-Za-z]+")
    assert words.findall(text) == words.findall(marked.replace("_", " "))


def test_bible_has_the_published_verses() -> None:
    kjv, asv = data.bible_verses(), data.bible_verses("asv")
    assert len(kjv) == 31_102
    assert len(asv) == 31_086
    assert len({verse.book for verse in kjv}) == 66
    assert len({(verse.book, verse.chapter) for verse in kjv}) == 1_189
    john = next(v for v in kjv if (v.book, v.chapter, v.verse) == ("John", 11, 35))
    assert john.text == "Jesus wept."
    assert kjv[-1] == data.Verse(
        "Revelation", 22, 21, "The grace of our Lord Jesus Christ be with you all. Amen."
    )
    places = {(v.book, v.chapter, v.verse) for v in kjv}
    assert len(places) == 31_102
    assert sum((v.book, v.chapter, v.verse) in places for v in asv) > 31_080
    text = data.bible()
    assert len([line for line in text.split("\n") if line]) == 31_102
    assert text.count("\n\n") == 1_188
    assert not re.search(r"\d", text)


def test_three_kingdoms_is_complete_and_chinese() -> None:
    chapters = data.three_kingdoms()
    assert len(chapters) == 120
    assert chapters[0].title == "第一回 宴桃园豪杰三结义 斩黄巾英雄首立功"
    assert all(re.match(r"第[一二三四五六七八九十百]+回 ", c.title) for c in chapters)
    assert len({c.title for c in chapters}) == 120
    assert "话说天下大势，分久必合，合久必分" in chapters[0].text
    text = data.chinese_classics()
    assert text.startswith(chapters[0].title)
    hanzi = sum("CJK UNIFIED" in unicodedata.name(character, "") for character in text)
    assert 485_000 < hanzi < 487_000
    assert not re.search(r"[A-Za-z\t\r]", text)


def test_three_kingdoms_names_resolve_aliases() -> None:
    names = data.three_kingdoms_names()
    assert {"孔明", "诸葛亮", "卧龙"} <= set(names.mentions["诸葛亮"])
    assert names.kinds["诸葛亮"] == "人名"
    assert set(names.kinds.values()) == {"人名", "州名", "势力"}
    assert all(len(set(aliases)) == len(aliases) for aliases in names.mentions.values())
    assert set(names.mentions) <= set(names.kinds)
    assert repr(names) == "Names(4386 entities with names, 4512 with a kind)"


# Pictures


def test_reviews_are_balanced_and_news_have_no_labels() -> None:
    short, long = data.reviews(), data.reviews("imdb")
    assert (len(short), int(short.labels.sum())) == (200, 100)
    assert (len(long), int(long.labels.sum())) == (200, 103)
    assert not any("<br" in text or text != text.strip() for text in (*short.texts, *long.texts))
    assert statistics.median(len(text.split()) for text in long.texts) == 173.5
    assert short.texts[0] == "simplistic , silly and tedious ."
    assert any("clichés" in text for text in short.texts)
    lengths = [len(item.split()) for item in data.news()]
    assert (len(lengths), min(lengths), max(lengths)) == (300, 45, 620)
    with pytest.raises(ValueError, match="unknown reviews 'sst'; known: snippets, imdb"):
        data.reviews("sst")


def test_digits_are_those_of_scikit_learn() -> None:
    reference = sklearn.datasets.load_digits()
    digits = data.digits()
    assert len(digits) == 1797
    assert digits.side == 8
    assert np.array_equal(digits.images.numpy() * 16, reference.data)
    assert np.array_equal(digits.labels.numpy(), reference.target)
    assert repr(digits) == "Digits(1797 images of 8 x 8)"


def test_mnist_has_500_of_each_digit() -> None:
    mnist = data.mnist()
    assert mnist.images.shape == (5000, 784)
    assert mnist.labels.bincount().tolist() == [500] * 10
    assert (mnist.images.min(), mnist.images.max()) == (0, 1)
    # Ink lies in the middle: MNIST centers 20 x 20 digits in 28 x 28 pixels.
    squares = mnist.images.reshape(-1, 28, 28)
    assert squares[:, 4:-4, 4:-4].sum() > 0.95 * squares.sum()
    with pytest.raises(ValueError, match="63 pixels make no square"):
        data.Digits(torch.zeros(2, 63), torch.zeros(2, dtype=torch.int64))


def test_emoji_pictures_differ_and_have_captions_in_both_languages() -> None:
    emoji = data.emoji_images(size=16)
    count = len(emoji)
    assert 1_800 < count < 2_100
    assert emoji.images.shape == (count, 3, 16, 16)
    assert emoji.images.dtype == torch.uint8
    assert {language: len(names) for language, names in emoji.captions.items()} == {
        "en": count,
        "zh": count,
    }
    row = emoji.emoji.index("\N{DOG FACE}")
    assert (emoji.captions["en"][row], emoji.captions["zh"][row]) == ("dog face", "狗脸")
    assert not any(c[0] == ":" or "_" in c for names in emoji.captions.values() for c in names)
    # Some emoji share a picture, such as the flags of a country and of its territories.
    assert len({bytes(image.numpy()) for image in emoji.images}) > 0.97 * count
    red = emoji.images[emoji.emoji.index("\N{LARGE RED CIRCLE}"), :, 8, 8].tolist()
    assert red[0] > 180 > 100 > max(red[1:])
    corners = emoji.images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).float().mean() > 0.97
    assert repr(emoji) == f"EmojiImages({count} of 16 x 16; captions en, zh)"


def test_emoji_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 8 pixels, got 7"):
        data.emoji_images(size=7)
    with pytest.raises(ValueError, match=r"unknown languages \['klingon'\]; known: .*zh"):
        data.emoji_images(languages=("en", "klingon"))
    with pytest.raises(data.MissingDataError, match="give the path of a color font"):
        data.emoji_images(font=tmp_path / "none.ttf")


# Knowledge graphs


@pytest.mark.parametrize(
    ("name", "entities", "relations", "sizes"),
    [
        ("nations", 14, 55, (1592, 199, 201)),
        ("kinships", 104, 25, (8544, 1068, 1074)),
        ("umls", 135, 46, (5216, 652, 661)),
    ],
)
def test_knowledge_graphs_have_the_published_sizes(
    name: str, entities: int, relations: int, sizes: tuple[int, int, int]
) -> None:
    graph = data.knowledge_graph(name)
    assert (len(graph.entities), len(graph.relations)) == (entities, relations)
    splits = (graph.train, graph.valid, graph.test)
    assert tuple(len(split) for split in splits) == sizes
    facts = torch.cat(splits)
    assert facts.dtype == torch.int64
    assert len(facts.unique(dim=0)) == len(facts)
    # Every number is used, so numbering has no gaps; and training sees every entity.
    assert facts[:, [0, 2]].unique().tolist() == list(range(entities))
    assert facts[:, 1].unique().tolist() == list(range(relations))
    assert graph.train[:, [0, 2]].unique().tolist() == list(range(entities))
    assert graph.name in repr(graph)


def test_knowledge_graph_numbers_stand_for_the_names_in_the_file() -> None:
    graph = data.knowledge_graph("umls")
    path = data.locate("knowledge_graphs", "datasets/umls/test.txt")
    for line, (head, relation, tail) in zip(
        path.read_text().splitlines(), graph.test.tolist(), strict=True
    ):
        named = (graph.entities[head], graph.relations[relation], graph.entities[tail])
        assert "\t".join(named) == line


# Fairness


def rates(table: data.Table) -> tuple[float, float]:
    """False positive and false negative rate of the score at 5 and above."""
    flagged = table.number("decile_score") >= 5
    again = table.number("two_year_recid") == 1
    positive = (flagged & ~again).sum() / (~again).sum()
    negative = (~flagged & again).sum() / again.sum()
    return float(positive), float(negative)


def test_compas_reproduces_the_published_disparity() -> None:
    table = data.compas()
    assert len(table) == 6_172
    assert len(data.compas(filtered=False)) == 7_214
    black = table.where(table.equals("race", "African-American"))
    white = table.where(table.equals("race", "Caucasian"))
    assert (len(black), len(white)) == (3_175, 2_103)
    assert rates(black) == (pytest.approx(0.423, abs=5e-4), pytest.approx(0.285, abs=5e-4))
    assert rates(white) == (pytest.approx(0.220, abs=5e-4), pytest.approx(0.496, abs=5e-4))
    # ProPublica's own table is over all rows: 44.85 and 27.99 percent, 23.45 and 47.72 percent.
    everyone = data.compas(filtered=False)
    black = everyone.where(everyone.equals("race", "African-American"))
    white = everyone.where(everyone.equals("race", "Caucasian"))
    assert rates(black) == (pytest.approx(0.4485, abs=5e-5), pytest.approx(0.2799, abs=5e-5))
    assert rates(white) == (pytest.approx(0.2345, abs=5e-5), pytest.approx(0.4772, abs=5e-5))


def test_compas_keeps_those_who_could_be_followed_for_two_years() -> None:
    everyone, followed = data.compas(filtered=False), data.compas(filtered=False, followed=True)
    assert len(followed) == 6_216
    # Barenstein, arXiv:1906.04711: 45.1 and 36.2 percent.
    shares = [float(t.number("two_year_recid").mean()) for t in (everyone, followed)]
    assert shares == [pytest.approx(0.4507, abs=5e-5), pytest.approx(0.3625, abs=5e-5)]
    # Only people who were charged again are left out.
    negatives = [int((t.number("two_year_recid") == 0).sum()) for t in (everyone, followed)]
    assert negatives[0] == negatives[1]
    assert followed.names == everyone.names


def test_compas_holds_no_personal_column() -> None:
    table = data.compas(filtered=False)
    assert len(table.names) == 17
    personal = re.compile(r"name|first|last|dob|birth|\bid$|case|date|jail|custody|desc|number")
    assert not [name for name in table.names if personal.search(name)]
    header = data.locate("compas", "dataset/compas/compas-scores-two-years.csv")
    columns = header.read_text().split("\n", 1)[0].split(",")
    assert {"name", "first", "last", "dob", "c_case_number"} <= set(columns)  # so it can fail
    assert max(len(set(column)) for column in table.categories.values()) <= 6


def test_adult_has_the_published_sizes_and_base_rates() -> None:
    train, test = data.adult(), data.adult("test")
    assert (len(train), len(test)) == (32_561, 16_281)
    for split in (train, test):
        assert set(split.category("income")) == {"<=50K", ">50K"}
        assert set(split.category("sex")) == {"Female", "Male"}
        assert len(split.names) == 15
    # adult.names: 23.93 percent above 50K over both files, unknowns included.
    above = torch.cat([t.equals("income", ">50K") for t in (train, test)]).double().mean()
    assert float(above) == pytest.approx(0.2393, abs=5e-5)
    for sex, rate in (("Female", 0.109), ("Male", 0.306)):
        group = train.where(train.equals("sex", sex))
        assert float(group.equals("income", ">50K").double().mean()) == pytest.approx(
            rate, abs=5e-4
        )


def test_german_credit_is_decoded() -> None:
    table = data.german_credit()
    assert len(table) == 1000
    assert len(table.names) == 21
    assert int(table.equals("credit", "good").sum()) == 700
    assert set(table.category("foreign_worker")) == {"yes", "no"}
    assert not [v for c in table.categories.values() for v in c if re.fullmatch(r"A\d+", v)]
    assert (float(table.number("age").min()), float(table.number("age").max())) == (19, 75)


def test_fico_curves_are_distributions_and_reach_the_published_gap() -> None:
    scores = data.fico()
    assert scores.groups == ("White", "Black", "Hispanic", "Asian")
    assert scores.people.tolist() == [133_165, 18_274, 14_702, 7_906]
    assert scores.cdf.shape == scores.repaid.shape == (198, 4)
    assert bool((scores.score.diff() > 0).all())
    assert bool((scores.cdf.diff(dim=0) >= 0).all())
    assert torch.equal(scores.cdf[-1], torch.ones(4, dtype=torch.float64))
    assert bool(((scores.repaid >= 0) & (scores.repaid <= 1)).all())
    # Higher scores repay more often.
    assert bool((scores.repaid[-1] > 0.95).all())
    assert bool((scores.repaid[0] < 0.1).all())
    # The median of Black borrowers lies below that of white ones (Hardt et al. 2016, figure 7).
    medians = [float(scores.score[(scores.cdf[:, j] >= 0.5).nonzero()[0, 0]]) for j in range(4)]
    assert medians[1] < medians[2] < medians[0]
    assert "198 scores" in repr(scores)


def test_table_checks_columns_and_masks() -> None:
    table = data.Table({"x": torch.tensor([2.0, 3.0, 5.0])}, {"c": ["u", "v", "u"]})
    assert (len(table), table.names) == (3, ("x", "c"))
    kept = table.where(table.equals("c", "u"))
    assert kept.number("x").tolist() == [2, 5]
    assert kept.category("c") == ["u", "u"]
    assert len(table) == 3
    assert repr(table) == "Table(3 rows; x, c)"
    assert len(data.Table({}, {})) == 0
    assert len(data.Table({}, {"c": ["u"]})) == 1
    with pytest.raises(KeyError, match="no numeric column 'c'; there are x"):
        table.number("c")
    with pytest.raises(KeyError, match="no category 'x'; there are c"):
        table.category("x")
    with pytest.raises(ValueError, match="'c' is never 'w'; it is u, v"):
        table.equals("c", "w")
    with pytest.raises(ValueError, match=r"mask of shape \(2,\) for 3 rows"):
        table.where(torch.tensor([True, False]))
    with pytest.raises(ValueError, match=r"differ in length: \{'x': 3, 'c': 2\}"):
        data.Table({"x": torch.zeros(3)}, {"c": ["u", "v"]})
    with pytest.raises(ValueError, match="'x' is both"):
        data.Table({"x": torch.zeros(1)}, {"x": ["u"]})


@given(st.lists(st.tuples(st.floats(-9, 9), st.sampled_from("abc")), min_size=1, max_size=20))
def test_table_splits_into_its_groups(rows: list[tuple[float, str]]) -> None:
    x = torch.tensor([number for number, _ in rows], dtype=torch.float64)
    table = data.Table({"x": x}, {"c": [letter for _, letter in rows]})
    groups = [table.where(table.equals("c", v)) for v in sorted(set(table.category("c")))]
    assert sum(len(group) for group in groups) == len(table)
    together = torch.cat([group.number("x") for group in groups])
    assert torch.equal(together.sort().values, x.sort().values)


# Bias


def effect_size(wv: data.WordVectors, test: data.WeatTest) -> float:
    """Caliskan et al.'s effect size, on the words that the vectors have."""

    def unit(group: data.WordGroup) -> Tensor:
        words = [word.lower() for word in group.words if word.lower() in wv]
        vectors = wv.matrix(words).double()
        return vectors / vectors.norm(dim=1, keepdim=True)

    a, b = unit(test.first_attribute), unit(test.second_attribute)
    x, y = unit(test.first_target), unit(test.second_target)
    sx = ((x @ a.T).mean(1) - (x @ b.T).mean(1)).tolist()
    sy = ((y @ a.T).mean(1) - (y @ b.T).mean(1)).tolist()
    return (statistics.mean(sx) - statistics.mean(sy)) / statistics.stdev(sx + sy)


def test_weat_has_ten_tests_and_glove_shows_each_bias(glove: data.WordVectors) -> None:
    tests = data.weat()
    assert len(tests) == 10
    sizes = [(len(t.first_target.words), len(t.first_attribute.words)) for t in tests]
    assert sizes[:3] == [(25, 25), (25, 25), (50, 25)]
    assert sizes[3:] == [(18, 25), (18, 8), (8, 8), (8, 8), (8, 8), (6, 7), (8, 8)]
    for test in tests:
        assert len(test.first_target.words) == len(test.second_target.words)
        assert len(test.first_attribute.words) == len(test.second_attribute.words)
    given_sizes = [t.effect_size for t in tests]
    assert given_sizes == [1.35, 1.66, 1.17, None, None, 0.72, 0.82, 1.47, 1.01, 1.42]
    effects = [effect_size(glove, test) for test in tests]
    assert all(0.9 < effect < 1.8 for effect in effects)
    assert tests[5].first_target.name == "Male names"
    assert effects[5] == max(effects)


def test_gender_words_have_the_published_sizes() -> None:
    words = data.gender_words()
    assert len(words.definitional_pairs) == 10
    assert ("she", "he") in words.definitional_pairs
    assert len(words.equalize_pairs) == 52
    assert len(words.specific_seed) == 218
    assert len(words.specific) == 1_441
    assert len(words.professions) == 320
    ratings = {p.word: p for p in words.professions}
    assert ratings["actress"].definitional == -1
    assert ratings["nurse"].stereotypical < 0 < ratings["carpenter"].stereotypical
    shares = data.occupations()
    assert len(shares) == 40
    assert (shares["carpenter"], shares["secretary"]) == (0.02, 0.95)
    assert "construction worker" in shares


def test_crows_pairs_has_its_counts_and_one_mask_in_each() -> None:
    pairs = data.crows_pairs()
    assert len(pairs) == 1_018
    counts: dict[str, int] = {}
    for pair in pairs:
        counts[pair.bias_type] = counts.get(pair.bias_type, 0) + 1
        assert pair.sentence.count("[MASK]") == 1
        assert pair.more != pair.less
    assert counts == {
        "race-color": 367,
        "gender": 127,
        "nationality": 117,
        "socioeconomic": 109,
        "religion": 92,
        "sexual-orientation": 68,
        "age": 59,
        "physical-appearance": 48,
        "disability": 31,
    }


def test_stereoset_has_its_counts() -> None:
    items = data.stereoset()
    assert len(items) == 4_229
    within = [item for item in items if item.kind == "intrasentence"]
    assert len(within) == 2_106
    assert sum("BLANK" not in item.context for item in within) == 0
    assert {item.bias_type for item in items} == {"race", "profession", "gender", "religion"}
    for item in items:
        assert len({item.stereotype, item.anti_stereotype, item.unrelated}) >= 2


def test_winobias_masks_one_pronoun_and_names_both() -> None:
    sentences = data.winobias()
    assert len(sentences) == 761
    for sentence in sentences:
        assert sentence.text.count("[MASK]") == 1
        assert "[" not in sentence.text.replace("[MASK]", "")
        assert sentence.occupation in sentence.text
        assert {sentence.stereotyped, sentence.other} <= {"he", "she", "his", "her", "him"}
        assert sentence.stereotyped != sentence.other


def test_bbq_answers_are_among_three_options() -> None:
    asked = data.bbq()
    assert len(asked) == 1_012
    for question in asked:
        assert len(question.options) == 3
        assert question.answer in question.options
        assert "Please choose" not in question.question


# Questions


@pytest.mark.parametrize(
    ("name", "number", "choices"),
    [
        ("truthfulqa", 817, 0),
        ("boolq", 3270, 0),
        ("piqa", 1500, 2),
        ("siqa", 1954, 3),
        ("openbookqa", 500, 4),
        ("commonsenseqa", 1221, 5),
        ("mmlu", 2850, 4),
        ("asdiv", 2305, 0),
        ("logiqa", 1000, 4),
        ("disflqa", 1000, 0),
    ],
)
def test_questions_have_their_number_and_an_answer_among_the_choices(
    name: str, number: int, choices: int
) -> None:
    asked = data.questions(name)
    assert len(asked) == number
    for question in asked:
        assert question.question
        assert question.answers
        assert all(question.answers)
        assert len(question.choices) == choices
        if choices:
            assert len(question.answers) == 1
            assert question.answers[0] in question.choices
    if name == "boolq":
        assert {question.answers for question in asked} == {("True",), ("False",)}


def test_summaries_and_ratings_have_their_number() -> None:
    articles = data.xsum()
    assert len(articles) == 1000
    assert statistics.mean(len(a.document) > len(a.summary) for a in articles) > 0.99
    comments = data.toxicity()
    assert len(comments) == 993
    assert comments.scores.shape == (993, 8)
    assert comments.traits[-1] == "toxicity"
    assert bool(((comments.scores >= 0) & (comments.scores <= 1)).all())
    assert "993 comments" in repr(comments)
