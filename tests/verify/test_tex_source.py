"""Where the TeX comes from: the chapters, the table of the package, a notebook beside it."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from companion.verify import VerificationError, page
from companion.verify.tex import _source
from companion.verify.tex._source import displays, table_of, tex_of

ROOT = Path(__file__).parents[2]


def test_every_labeled_formula_of_a_page_is_found_and_code_is_not():
    text = """
$$
a=b
$$ (eq:one)

Unlabeled: $$ x=y $$

```{code-cell} ipython3
s = "$$ c=d $$ (eq:code)"
```

> $$
> e=f
> $$ (def:two)
"""
    assert dict(displays(text)) == {"eq:one": "a=b", "def:two": "e=f"}


def test_the_chapters_of_the_checkout_are_read():
    tex = tex_of("eq:infonce")
    assert r"\sum_{j=1}^N" in tex
    with pytest.raises(LookupError, match="no page of the book displays eq:nowhere"):
        tex_of("eq:nowhere")


def test_a_changed_page_is_read_anew(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text("$$\na=b\n$$ (eq:one)\n", encoding="utf-8")
    monkeypatch.setenv("COMPANION_BOOK", str(tmp_path))
    assert tex_of("eq:one") == "a=b"
    (tmp_path / "page.md").write_text("$$\na=c+c\n$$ (eq:one)\n", encoding="utf-8")
    assert tex_of("eq:one") == "a=c+c"


def notebook(path, tex):
    cells = [{"cell_type": "markdown", "source": [f"$$\n{tex}\n", "$$ (eq:one)"]}]
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package as it is installed elsewhere: no book, but a table."""
    monkeypatch.setenv("COMPANION_BOOK", str(tmp_path / "no book"))
    monkeypatch.setattr(_source, "_table", lambda: {"eq:one": "a = b"})
    return tmp_path


def test_an_installed_package_has_the_formulas_in_its_table(installed):
    assert tex_of("eq:one", here=installed) == "a = b"
    with pytest.raises(LookupError, match="has no formula eq:other"):
        tex_of("eq:other", here=installed)


def test_a_notebook_elsewhere_must_agree_with_the_installed_package(installed):
    notebook(installed / "chapter.ipynb", "a=b")
    notebook_tex = r"a= b"
    notebook(installed / "chapter.ipynb", notebook_tex.replace("=", " = "))
    assert tex_of("eq:one", here=installed).split() == ["a", "=", "b"]
    notebook(installed / "chapter.ipynb", "a=-b")
    with pytest.raises(LookupError, match=r"reads differently in chapter\.ipynb"):
        tex_of("eq:one", here=installed)


def test_the_package_build_makes_the_table_from_the_book(tmp_path):
    for name in ("book", "companion/verify/tex"):
        shutil.copytree(ROOT / name, tmp_path / name)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.table(tmp_path)
    assert made == table_of(ROOT / "book")
    assert len(made) >= 350
    assert made["eq:lora-grad"] == tex_of("eq:lora-grad")
    hook = module.DisplayedFormulas(str(tmp_path), {}, None, None, str(tmp_path / "dist"), "wheel")
    data = {"force_include": {}}
    hook.initialize("standard", data)
    ((path, inside),) = data["force_include"].items()
    assert inside == "companion/verify/tex/displays.json"
    assert json.loads(Path(path).read_text(encoding="utf-8")) == made
    hook.finalize("standard", data, "")
    assert not Path(path).exists()


def test_the_table_stands_where_the_reader_looks():
    assert Path(_source.__file__).with_name("displays.json") == _source.TABLE
    assert not _source.TABLE.exists()  # in a checkout the chapters are the source


def test_page_reads_the_formula_that_is_displayed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COMPANION_BOOK", str(tmp_path))
    reading = {"a": 0.7 * 1.3 - 2.1, "b": 0.7, "c": 1.3, "d": 2.1}
    chapter = tmp_path / "page.md"
    chapter.write_text("$$\na=bc-d\n$$ (eq:one)\n", encoding="utf-8")
    record = page("eq:one", reading)
    assert capsys.readouterr().out.startswith("✓ eq:one · read from the page · equality")
    assert record.as_dict()["read"] is True
    chapter.write_text("$$\na=bc+d\n$$ (eq:one)\n", encoding="utf-8")
    with pytest.raises(VerificationError, match="the page is wrong or its reading is"):
        page("eq:one", reading)
