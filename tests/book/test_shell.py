"""The shell of the book: its tables, its front matter, and the promises of the README."""

import csv
import importlib.metadata
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from docutils import nodes
from pybtex.database import parse_file
from pybtex.style.formatting.unsrt import Style as UnsrtStyle
from pybtex.style.template import FieldIsMissing

import companion

from .conftest import ROOT

DATA = ROOT / "book" / "_data"
NAMES = ("preface", "notation", "glossary", "sources", "resources", "faq")
PAGES = tuple(ROOT / "book" / f"{name}.md" for name in NAMES)
PAPERS = tuple(ROOT / n for n in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))
TEXTS = (*PAGES, *PAPERS, *(DATA / f"{n}.tsv" for n in ("sources", "errata", "glossary", "tools")))
INFERRED = "[TRUNCATED, inferred]"
# Pairs of characters of which each belongs to one of the scripts alone.
PAIRS = """
专專 个個 义義 习習 众衆 传傳 伪僞 体體 侦偵 关關 决決 减減 划劃 则則 务務 动動 励勵 势勢 区區
协協 单單 压壓 参參 双雙 变變 号號 图圖 场場 坏壞 块塊 声聲 处處 头頭 奖獎 学學 实實 宽寬 对對
寻尋 导導 尔爾 层層 属屬 师師 带帶 广廣 库庫 应應 开開 异異 张張 强強 归歸 录錄 径徑 忆憶 态態
总總 扩擴 扰擾 护護 拟擬 损損 换換 据據 数數 断斷 无無 时時 显顯 术術 机機 杂雜 权權 条條 构構
标標 树樹 样樣 检檢 残殘 汇匯 测測 温溫 潜潛 点點 热熱 状狀 独獨 环環 现現 电電 监監 码碼 础礎
确確 离離 积積 称稱 稳穩 筛篩 签籤 简簡 类類 约約 纯純 线線 练練 组組 经經 结結 络絡 绝絕 统統
续續 维維 缀綴 缓緩 编編 缘緣 缩縮 网網 联聯 脑腦 节節 补補 见見 规規 视視 觉覺 计計 认認 训訓
讯訊 记記 论論 设設 证證 评評 识識 词詞 译譯 试試 话話 询詢 语語 误誤 说說 调調 谱譜 质質 费費
资資 转轉 轮輪 软軟 载載 辑輯 边邊 达達 迁遷 过過 运運 连連 选選 递遞 逻邏 遗遺 邻鄰 释釋 针針
链鏈 锁鎖 键鍵 长長 门門 问問 间間 阈閾 阵陣 阶階 际際 险險 随隨 隐隱 静靜 项項 顺順 预預 领領
频頻 题題 风風 饱飽 馈饋 馏餾 马馬 验驗 鲁魯
"""
SIMPLIFIED = {pair[0] for pair in PAIRS.split()}
TRADITIONAL = {pair[1] for pair in PAIRS.split()}


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / f"{name}.tsv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def plan() -> dict[str, str]:
    """Return every home of the plan, chapters and appendices, with its part."""
    raw = yaml.safe_load((ROOT / "book" / "contents.yml").read_text(encoding="utf-8"))
    homes = {
        f"{part['folder']}/{chapter['file']}": part["folder"]
        for part in raw["parts"]
        for chapter in part["chapters"]
    }
    return homes | {entry["file"]: "appendices" for entry in raw["appendices"]}


def written() -> set[str]:
    """Return the chapters that the table of contents lists."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = {page["file"] for part in toc["parts"] for page in part["chapters"]}
    chapters = {home for home, part in plan().items() if part != "appendices"}
    return {file.removeprefix("book/") for file in files} & chapters


def code_blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


def run_code(code: str) -> dict[str, Any]:
    scope: dict[str, Any] = {}
    exec(compile(code, "example", "exec"), scope)
    return scope


# --- the tables ---------------------------------------------------------------------------------


def test_all_260_source_topics_are_there_once_with_a_home_in_the_plan() -> None:
    topics, homes = rows("sources"), plan()
    assert len(topics) == 260
    assert len({topic["id"] for topic in topics}) == 260
    for topic in topics:
        assert topic["id"].startswith(topic["document"] + "."), topic
        assert homes.get(topic["home_chapter"]) == topic["home_part"], topic


def test_every_document_and_every_chapter_has_source_topics() -> None:
    topics = rows("sources")
    assert {topic["document"] for topic in topics} == {"S0", "S1", "S2", "S3", "S4"}
    used = {topic["home_chapter"] for topic in topics}
    assert [
        home for home, part in plan().items() if part != "appendices" and home not in used
    ] == []


def test_topics_that_continue_a_cut_sentence_are_marked_as_inferred() -> None:
    # Three documents break off; the guesses at what followed are these rows and no others.
    marked = {topic["id"] for topic in rows("sources") if topic["topic"].startswith(INFERRED)}
    assert marked == {"S2.4.3-2", "S2.5-1", "S3.3.2.3-4"}
    assert INFERRED in (ROOT / "book" / "sources.md").read_text(encoding="utf-8")


def test_topics_and_errata_refer_to_each_other() -> None:
    numbers = [erratum["number"] for erratum in rows("errata")]
    assert numbers == [f"ERR-{number:02}" for number in range(1, 57)]
    referenced = {number for topic in rows("sources") for number in topic["errata"].split()}
    assert referenced == set(numbers)


def test_every_erratum_says_where_what_and_why_and_has_a_home() -> None:
    homes = plan()
    for erratum in rows("errata"):
        assert all(value.strip() for value in erratum.values()), erratum
        assert erratum["home"] in homes, erratum
        assert re.match(r"S[0-4] ", erratum["where"]), erratum
        # A correction rests on something that a reader can look up.
        assert re.search(
            r"arXiv:\d{4}\.\d{4,5}|arXiv:|doi:|§|20\d\d|[Gg]lossary", erratum["source"]
        )


def asked_packages() -> dict[str, set[str]]:
    """Return the names of the packages that pyproject.toml asks for, by group of the table."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = {
        "library": project["dependencies"],
        "book": extras["book"],
        "checks": extras["test"],
        "bench": extras["bench"],
    }
    return {
        group: {re.match(r"[\w.-]+", requirement)[0] for requirement in listed}  # type: ignore[index]
        for group, listed in asked.items()
    }


def test_the_table_of_tools_has_one_row_for_each_package_that_is_asked_for() -> None:
    table = rows("tools")
    assert all(value.strip() for row in table for value in row.values())
    named: dict[str, set[str]] = {}
    for row in table:
        named.setdefault(row["group"], set()).add(row["name"])
    assert named == asked_packages()
    assert len(table) == sum(len(names) for names in named.values())


def test_the_licenses_in_the_table_of_tools_are_those_that_the_packages_state() -> None:
    # Families, since packages write one license in many ways; some list what they bundle as well.
    family = re.compile(r"Apache|BSD|MIT|MPL|LGPL|PSF|Python Software Foundation|GPL")
    checked = 0
    for row in rows("tools"):
        if row["group"] == "bench":  # in an environment of its own
            continue
        about = importlib.metadata.metadata(row["name"])
        stated = [about.get("License-Expression") or "", (about.get("License") or "")[:500]]
        stated += [line for line in about.get_all("Classifier") or () if line.startswith("License")]
        families = {
            word.replace("Python Software Foundation", "PSF")
            for word in family.findall(" ".join(stated))
        }
        assert family.findall(row["license"])[0] in families, (row, families)
        checked += 1
    assert checked > 50


def test_every_answer_points_to_a_proof_or_a_measurement() -> None:
    text = (ROOT / "book" / "faq.md").read_text(encoding="utf-8")
    answers = re.split(r"^### ", text.split("## References")[0], flags=re.M)[1:]
    assert len(answers) >= 30
    for answer in answers:
        question, body = answer.split("\n", 1)
        assert question.endswith("?"), question
        assert re.search(r"\{(?:eq|numref|prf:ref)\}`", body), question
        assert len(body.split("(faq-")[0].split()) <= 90, question


def test_glossary_is_complete_sorted_and_without_doubles() -> None:
    terms, homes = rows("glossary"), plan()
    assert len(terms) >= 300
    for term in terms:
        assert all(value and value == value.strip() for value in term.values()), term
        assert term["home"] in homes, term
    names = [term["en"] for term in terms]
    assert names == sorted(names, key=lambda name: (name.casefold(), name))
    # The page makes an anchor of each term, so terms must differ in more than punctuation.
    assert len({nodes.make_id(f"term-{name}") for name in names}) == len(names)


def test_glossary_does_not_mix_the_two_scripts() -> None:
    for term in rows("glossary"):
        assert not set(term["zh_hant"]) & SIMPLIFIED, term
        assert not set(term["zh_hans"]) & TRADITIONAL, term


def test_glossary_keeps_the_words_that_taiwan_says_differently() -> None:
    terms = {term["en"]: (term["zh_hans"], term["zh_hant"]) for term in rows("glossary")}
    expected = {
        "probability": ("概率", "機率"),
        "memory": ("内存", "記憶體"),
        "variance": ("方差", "變異數"),
        "neural network": ("神经网络", "神經網路"),
        "algorithm": ("算法", "演算法"),
        "row (of a matrix)": ("行", "列"),
        "column (of a matrix)": ("列", "行"),
        "perplexity": ("困惑度", "困惑度"),
    }
    assert {name: terms[name] for name in expected} == expected


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_math_is_closed_and_spelling_is_american(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.M | re.S)
    for block in re.split(r"\n\s*\n|\n", prose) if path.suffix == ".tsv" else prose.split("\n\n"):
        assert block.count("$") % 2 == 0, block
    british = (
        r"\b\w*(?:ptimis|eneralis|egularis|ormalis|uantis|isualis|inimis|aximis|okenis|ummaris"
        r"|itialis|metris|ecognis|rganis|actoris|odell|abell|haviour|olour|eighbour|icence)\w*"
    )
    assert not re.findall(british, prose)


# --- the pages ----------------------------------------------------------------------------------


def test_notation_layout_of_jacobians_is_what_pytorch_gives_transposed() -> None:
    g = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((3,), (3, 5)))
    ours = torch.func.jacrev(lambda x: x @ w)(x).T
    torch.testing.assert_close(ours, w)
    y_bar = torch.randn(5, generator=g, dtype=torch.float64)
    (pulled,) = torch.func.vjp(lambda x: x @ w, x)[1](y_bar)
    torch.testing.assert_close(y_bar @ ours.T, pulled)
    text = (ROOT / "book" / "notation.md").read_text(encoding="utf-8")
    assert r"[\partial y/\partial x]_{ij}=\partial y_j/\partial x_i" in text
    assert r"\bar x=\bar y\,(\partial y/\partial x)^\top" in text


def test_notation_dictionary_from_columns_to_rows_holds() -> None:
    g = torch.Generator().manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    x, y, wq = draw(3, 7), draw(5, 7), draw(7, 2)  # rows: 3 and 5 tokens of width 7
    q, k, v = x @ wq, y @ wq, draw(5, 11)
    q_col, k_col, v_col = wq.T @ x.T, wq.T @ y.T, v.T  # the same with columns
    torch.testing.assert_close((q @ k.T), q_col.T @ k_col)
    a = (q @ k.T).softmax(-1)
    torch.testing.assert_close(a @ v, (v_col @ a.T).T)
    w = draw(7, 2).requires_grad_()
    row = draw(1, 7).requires_grad_()
    bar = draw(1, 2)
    (row @ w).backward(bar)
    torch.testing.assert_close(w.grad, row.T @ bar)
    torch.testing.assert_close(row.grad, bar @ w.T)


def test_directives_stand_where_the_pages_promise_tables() -> None:
    for name, directives in {
        "preface": ("book-contents",),
        "glossary": ("glossary-table",),
        "sources": ("source-topics", "errata-table"),
    }.items():
        text = (ROOT / "book" / f"{name}.md").read_text(encoding="utf-8")
        for directive in directives:
            assert f"```{{{directive}}}\n```" in text


def test_the_claims_on_what_is_written_agree_with_the_table_of_contents() -> None:
    preface = (ROOT / "book" / "preface.md").read_text(encoding="utf-8")
    assert "```{book-contents}" in preface  # it lists what is written by itself
    chapters = {home for home, part in plan().items() if part != "appendices"}
    assert written() == chapters
    for text in (preface, (ROOT / "README.md").read_text(encoding="utf-8")):
        match = re.search(r"[Aa]ll (\d+)\s+chapters\s+are\s+written", text)
        assert match is not None
        assert int(match[1]) == len(chapters)


def test_every_topic_of_the_sources_is_answered_by_its_home() -> None:
    homes: dict[str, list[str]] = {}
    for row in rows("sources"):
        homes.setdefault(row["home_chapter"], []).append(row["id"])
    assert sum(map(len, homes.values())) == 260
    for home, topics in homes.items():
        if home in written():
            text = (ROOT / "book" / f"{home}.md").read_text(encoding="utf-8")
            said = re.search(r"^sources: \[(.*?)\]", text, re.M | re.S)
            assert said is not None, home
            assert set(topics) <= set(re.split(r",\s*", said[1])), home


def test_the_check_in_the_preface_passes_and_its_wrong_version_fails(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (code,) = code_blocks(ROOT / "book" / "preface.md", "python")
    run_code(code)
    assert capsys.readouterr().out.startswith("✓ eq:ce-grad · gradient by SymPy, autograd")
    wrong = code.replace("softmax(logits) - targets", "softmax(logits) + targets")
    assert wrong != code
    with pytest.raises(companion.verify.VerificationError, match="eq:ce-grad"):
        run_code(wrong)


def test_the_example_in_the_readme_equals_what_it_says_it_equals() -> None:
    code, _ = code_blocks(ROOT / "README.md", "python")
    scope = run_code(code)
    wanted = torch.nn.functional.cross_entropy(
        scope["hidden"] @ scope["unembedding"], scope["targets"]
    )
    # Sums of 64 and of 32,000 float32 terms in another order.
    torch.testing.assert_close(scope["loss"], wanted, rtol=1e-5, atol=0)


def test_the_models_of_the_readme_answer_as_it_says() -> None:
    _, code = code_blocks(ROOT / "README.md", "python")
    scope = run_code(code.splitlines()[0])
    embedded, answered, continued, loaded = code.strip().splitlines()[2:]
    assert eval(embedded, scope).shape == (2, 384)
    assert eval(answered, scope) == answered.partition("# '")[2].removesuffix("'")
    assert eval(continued, scope)
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        eval(loaded, scope)


# --- the top of the repository --------------------------------------------------------------------


@pytest.mark.parametrize("path", [PAGES[0], *PAPERS], ids=lambda path: path.name)
def test_every_make_command_that_is_named_exists(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    text = path.read_text(encoding="utf-8")
    commands = re.findall(r"`make ([a-z]+)[^`]*`|^make ([a-z]+)", text, re.M)
    assert {first or second for first, second in commands} <= targets


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.name)
def test_every_link_within_the_repository_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (ROOT / target).is_file(), target


def test_version_and_licenses_agree_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == companion.__version__
    assert citation["license"] == "MIT"
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    title = rf"^## \[{re.escape(companion.__version__)}\] - (\d{{4}}-|unreleased$)"
    assert re.search(title, changelog, re.M)
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    prose = (ROOT / "LICENSE-prose").read_text(encoding="utf-8")
    assert "Creative Commons Attribution 4.0 International Public License" in prose


def test_every_reference_has_an_identifier_and_its_own_key() -> None:
    text = (ROOT / "references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{([^,]+),(.*?)^\}", text, re.M | re.S)
    keys = [key for key, _ in entries]
    assert len(set(keys)) == len(keys) > 0
    for key, body in entries:
        # The list of references is text: a formula there is not set.
        assert "$" not in body, key
        # Some good books and a few early conference papers have neither; a URL or an ISBN then.
        assert re.search(r"(^|[,\s])(doi|eprint|url|isbn)\s*=|arXiv:", body, re.M | re.I), key
    cited = set(re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", PAGES[0].read_text(encoding="utf-8")))
    assert cited <= set(keys)


def test_python_versions_in_the_text_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11,<3.14"
    assert "3.11 to 3.13" in PAGES[0].read_text(encoding="utf-8")
    assert "3.11, 3.12 or 3.13" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_each_reference_has_what_its_kind_needs() -> None:
    """A paper of a conference names it, an article its journal: no page could cite it else."""
    style = UnsrtStyle()
    lacking = []
    for key, entry in parse_file(str(ROOT / "references.bib")).entries.items():
        try:
            list(style.format_entries([entry]))
        except FieldIsMissing as error:
            lacking.append(f"{key}: {error}")
    assert not lacking


def test_each_reference_closes_before_the_next_one_begins() -> None:
    # A merge of two branches that append here may lose the brace between them.
    text = (ROOT / "references.bib").read_text(encoding="utf-8")
    entries = re.split(r"^(?=@)", text, flags=re.MULTILINE)[1:]
    assert [entry[:40] for entry in entries if entry.count("{") != entry.count("}")] == []
