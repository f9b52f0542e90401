"""Records: one line for the reader, one JSON object for the ledger, and generic inputs."""

import json

import nbclient
import nbformat
import pytest
import sympy as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion.verify import equal, generic, identity
from companion.verify._record import MIME

x = sp.Symbol("x", real=True)


def test_outside_a_notebook_one_line_is_printed(capsys):
    identity("eq:square", (x + 1) ** 2, x**2 + 2 * x + 1)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out.startswith("✓ eq:square · identity by SymPy, 40 digits · largest error ")
    assert out.endswith(" mutants rejected\n")


def test_a_record_is_plain_json():
    record = identity("eq:square", (x + 1) ** 2, x**2 + 2 * x + 1)
    made = json.loads(json.dumps(record.as_dict()))
    assert made["label"] == "eq:square"
    assert made["routes"][0] == ["SymPy", 0.0]
    assert made["mutants"] == list(record.mutants)
    assert made["line"] == record.line
    assert made["tolerance_used"] == record.largest_error / record.tolerance
    assert not any(key.startswith("_") for key in made)


@pytest.fixture(scope="module")
def executed():
    source = """
import sympy as sp
from companion import verify
x = sp.Symbol("x", real=True)
first = verify.identity("eq:one", (x + 1) ** 2, x**2 + 2 * x + 1)
verify.identity("eq:two", x * (x + 1), x**2 + x, show="two")
"""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source), nbformat.v4.new_code_cell("1 / 0")],
        metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}},
    )
    nbclient.NotebookClient(notebook, allow_errors=True, timeout=120).execute()
    return notebook


def test_a_notebook_keeps_line_and_record_exactly_once(executed):
    outputs = executed.cells[0].outputs
    records = [o.data[MIME] for o in outputs if MIME in o.get("data", {})]
    assert [record["label"] for record in records] == ["eq:one", "eq:two"]
    assert [record["shown"] for record in records] == [None, "two"]
    lines = [o.data["text/plain"] for o in outputs if MIME in o.get("data", {})]
    assert [line[:8] for line in lines] == ["✓ eq:one", "✓ eq:two"]
    assert all(o.output_type == "display_data" for o in outputs)


def test_show_glues_the_verified_equation(executed):
    glued = [o for o in executed.cells[0].outputs if "scrapbook" in o.get("metadata", {})]
    assert [o.metadata["scrapbook"]["name"] for o in glued] == ["two"]
    key = next(k for k in glued[0].data if k.endswith("text/latex"))
    assert sp.latex(sp.Eq(x * (x + 1), x**2 + x, evaluate=False)) in glued[0].data[key]


@given(
    rows=st.integers(2, 5),
    columns=st.integers(6, 9),
    low=st.floats(-3, 0.5),
    width=st.floats(0.7, 4),
    seed=st.integers(0, 2**31),
)
def test_generic_numbers_hide_nothing(rows, columns, low, width, seed):
    drawn = generic(
        rows, columns, generator=torch.Generator().manual_seed(seed), low=low, high=low + width
    )
    assert drawn.dtype == torch.float64
    assert drawn.shape == (rows, columns)
    assert len(set(drawn.reshape(-1).tolist())) == rows * columns
    assert float(drawn.abs().min()) >= 0.1
    assert low <= float(drawn.min())
    assert float(drawn.max()) <= low + width


def test_generic_refuses_square_and_single_axes_and_empty_intervals(g):
    with pytest.raises(ValueError, match=r"differ pairwise, got \(5, 5\)"):
        generic(5, 5, generator=g)
    with pytest.raises(ValueError, match=r"at least 2, got \(3, 1\)"):
        generic(3, 1, generator=g)
    with pytest.raises(ValueError, match=r"leaves no number|too narrow"):
        generic(3, generator=g, low=-0.05, high=0.05)


def test_equal_works_on_every_device(device, g):
    v = generic(5, generator=g).float().to(device)
    equal(
        "eq:norm",
        lambda v: (v * v).sum(),
        {"norm": lambda v: v.norm() ** 2},
        {"v": v},
        mutants={"no square": lambda v: v.sum()},
        tol=1e-5,
    )
