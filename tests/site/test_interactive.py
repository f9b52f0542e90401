"""The figures that move stand on the pages, work by keyboard, and compute as the library does.

What a figure shows is kept by the page at full precision (``figure.shown``). Here its controls are
moved as a reader moves them, and the numbers are held against ``companion``.
"""

import base64
import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import make_pdf
from companion.foundations import embeddings, optimization
from companion.foundations.backpropagation import weight_variance
from companion.foundations.cross_entropy import (
    cross_entropy,
    cross_entropy_backward,
    entropy,
    softmax,
    softmax_jacobian,
)
from companion.foundations.language_models import BPE
from companion.frontiers import reasoning
from companion.frontiers.outlook import bm25_saturation
from companion.frontiers.reinforcement import ppo_loss
from companion.knowledge import robustness
from companion.pretraining import autoregressive
from companion.transformer import block, cost, positions
from companion.transformer.attention import attention_state
from companion.trust import debiasing

from .conftest import HTML, MISSING, PAGES, ROOT
from .test_browser import complaints, visit

SCRIPTS = ROOT / "book" / "_static" / "interactive"
PLACE = re.compile(r'<figure class="interactive[^>]*id="try-([a-z0-9-]+)"')


def figures_of(name: str) -> list[str]:
    """List the figures of a page, by name."""
    return PLACE.findall((HTML / name).read_text(encoding="utf-8")) if name != MISSING else []


def places() -> dict[str, str]:
    """Return the page of each figure; the second page of one is kept as ``figure@chapter``."""
    found: dict[str, str] = {}
    for page in PAGES:
        for figure in figures_of(page):
            found[f"{figure}@{Path(page).stem}" if figure in found else figure] = page
    return found


FIGURES = places()
NAMES = sorted(FIGURES) or [MISSING]


def figure_of(place: str) -> str:
    """Return the name of the figure at a place."""
    return place.split("@")[0]


class Opened:
    """A figure on its page in the browser."""

    def __init__(self, browser: webdriver.Chrome, place: str) -> None:
        self.name = figure_of(place)
        self.browser, self.root = browser, f'document.getElementById("try-{self.name}")'

    def run(self, script: str, *values: Any) -> Any:
        return self.browser.execute_script(f"const root = {self.root}; {script}", *values)

    def set(self, **controls: Any) -> None:
        """Move controls by their names: a slider to a position, a list to an index, a tick."""
        for control, value in controls.items():
            self.run(
                "const input = root.querySelector(`[name='${arguments[0]}']`);"
                "if (input.type === 'checkbox') { input.checked = arguments[1]; }"
                "else { input.value = arguments[1]; }"
                "const kind = input.matches('select, [type=checkbox]') ? 'change' : 'input';"
                "input.dispatchEvent(new Event(kind, {bubbles: true}));",
                control,
                value,
            )

    @property
    def shown(self) -> dict[str, Any]:
        return self.run("return root.figure.shown")

    @property
    def data(self) -> Any:
        return self.run("return root.figure.data")

    @property
    def said(self) -> str:
        return str(self.run("return root.querySelector('.interactive-said').textContent"))


@pytest.fixture
def opened(
    request: pytest.FixtureRequest, site: Path, browser: webdriver.Chrome, server: str
) -> Opened:
    """The figure whose name the test gives."""
    name = request.param
    assert name in FIGURES, f"no page has the figure {name}"
    address = server + FIGURES[name]
    if browser.current_url != address:
        visit(browser, address, 1440)
    return Opened(browser, name)


def on(name: str) -> Any:
    """Give a test the figure of that name."""
    return pytest.mark.parametrize("opened", [name], indirect=True)


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Any, expected: torch.Tensor | float) -> None:
    """Both sides compute in float64; a page and a library may differ by rounding only."""
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(tensor(found), wanted, rtol=1e-9, atol=1e-12)


# --- on the pages -------------------------------------------------------------------------------


def test_ten_chapters_have_a_figure_that_moves(site: Path) -> None:
    assert len(set(FIGURES.values())) >= 10


def test_every_script_draws_a_figure_of_some_page(site: Path) -> None:
    drawn = {figure_of(place) for place in FIGURES}
    assert {path.stem for path in SCRIPTS.glob("*.js")} == {"common", *drawn}


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_is_light_and_needs_nothing_else(
    name: str, site: Path, soups: dict[str, BeautifulSoup]
) -> None:
    page, figure = soups[FIGURES[name]], figure_of(name)
    root = page.find(id=f"try-{figure}")
    data = root.find("script", type="application/json").string
    json.loads(data)
    size = sum((SCRIPTS / f"{part}.js").stat().st_size for part in (figure, "common")) + len(data)
    assert size < 100_000
    source = (SCRIPTS / f"{figure}.js").read_text(encoding="utf-8")
    assert not re.search(r"fetch|XMLHttpRequest|import\b|https?:", source)
    loaded = [str(tag["src"]) for tag in page.find_all("script", src=True)]
    scripts = [address for address in loaded if "/interactive/" in address]
    assert {Path(address.split("?")[0]).stem for address in scripts} == {
        "common",
        *figures_of(FIGURES[name]),
    }


def test_pages_without_a_figure_load_none(soups: dict[str, BeautifulSoup]) -> None:
    for page, soup in soups.items():
        if page not in FIGURES.values():
            assert not soup.select('[src*="/interactive/"], [href*="/interactive/"]'), page


@pytest.mark.parametrize("name", NAMES)
def test_without_scripts_a_sentence_stands_in_its_place(
    name: str, soups: dict[str, BeautifulSoup]
) -> None:
    root = soups[FIGURES[name]].find(id=f"try-{figure_of(name)}")
    assert "needs" in root.select_one(".interactive-fallback").get_text()
    caption = root.find("figcaption").get_text(" ", strip=True)
    assert caption.startswith("Try it.")
    assert len(caption.split()) >= 30, "what to try, and what to see"


def test_on_paper_the_sentence_and_the_caption_stay(site: Path) -> None:
    name = FIGURES["optimizer"].removesuffix(".html")
    page = make_pdf.Page(name, "Part I")
    article = make_pdf.read_article(site, page, {name: page}, "../html")
    figure = article.select_one("figure.interactive")
    assert figure.select_one(".interactive-fallback").get_text().startswith("This figure moves.")
    assert figure.find("figcaption").get_text(strip=True).startswith("Try it.")
    assert not figure.select("script, input, svg")


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("name", NAMES)
def test_a_figure_fits_and_can_be_read(
    name: str, width: int, site: Path, browser: webdriver.Chrome, server: str
) -> None:
    visit(browser, server + FIGURES[name], width)
    figure = Opened(browser, name)
    assert (
        figure.run(
            "const frame = root.getBoundingClientRect();"
            "return [...root.querySelectorAll('*')].filter((e) => !e.closest('clipPath'))"
            ".filter((e) => { const box = e.getBoundingClientRect();"
            "  return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1); })"
            ".filter((e) => !(e.getAttribute('clip-path')))"
            ".map((e) => e.outerHTML.slice(0, 120))"
        )
        == []
    )
    sizes = figure.run(
        "return [...root.querySelectorAll('svg text')].map("
        "(t) => parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.clientWidth"
        " / t.ownerSVGElement.viewBox.baseVal.width)"
    )
    assert min(sizes) >= 9
    labels = figure.run(
        "return [...root.querySelectorAll('svg')].map((s) => s.getAttribute('aria-label'))"
    )
    assert all(len(label) > 20 for label in labels)
    assert complaints(browser, server) == []


@pytest.mark.parametrize("opened", NAMES, indirect=True)
def test_a_figure_follows_the_keyboard(opened: Opened) -> None:
    """Every control can be reached and has a name; each slider moves with the arrow keys."""
    controls = opened.browser.find_elements(
        By.CSS_SELECTOR, f"#try-{opened.name} :is(input, select, button)"
    )
    assert controls
    for control in controls:
        assert control.accessible_name
        assert control.get_attribute("tabindex") in (None, "", "0")
    moved = False
    for slider in controls:
        if slider.get_attribute("type") != "range":
            continue
        before = slider.get_attribute("value"), opened.shown
        at_end = before[0] == slider.get_attribute("max")
        slider.send_keys(Keys.ARROW_LEFT if at_end else Keys.ARROW_RIGHT)
        assert slider.get_attribute("value") != before[0]
        assert slider.get_attribute("aria-valuetext")
        moved = moved or opened.shown != before[1]
    for select in controls if not moved else []:
        if select.tag_name == "select":
            before = opened.shown
            select.send_keys(Keys.ARROW_DOWN)
            moved = moved or opened.shown != before
    assert moved, "no control changes what is shown"


def test_motion_is_not_offered_to_those_who_want_none(
    site: Path, browser: webdriver.Chrome, server: str
) -> None:
    still = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", still)
    try:
        visit(browser, server + FIGURES["optimizer"], 1440)
        buttons = Opened(browser, "optimizer").run(
            "return [...root.querySelectorAll('button')].map((b) => b.textContent)"
        )
        assert "Step" in buttons
        assert "Play" not in buttons
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_figure_that_fails_leaves_its_sentence(
    site: Path, browser: webdriver.Chrome, server: str
) -> None:
    visit(browser, server + FIGURES["temperature"], 1440)
    left, told = browser.execute_script(
        "const root = document.createElement('figure');"
        "root.className = 'interactive'; root.dataset.figure = 'broken';"
        'root.innerHTML = \'<div class="interactive-stage"><p>a sentence</p></div>'
        '<script type="application/json">null</script>\';'
        "document.body.append(root);"
        "let told = '';"
        "try { Interactive.define('broken', () => { throw new Error('on purpose'); }); }"
        "catch (error) { told = error.message; }"
        "return [root.textContent, told];"
    )
    assert told == "on purpose"
    assert left.startswith("a sentence")


# --- the numbers --------------------------------------------------------------------------------


@on("temperature")
@pytest.mark.parametrize("position", [-1.0, 0.0, 0.7])
def test_temperature_is_the_softmax_of_the_library(opened: Opened, position: float) -> None:
    opened.set(T=position, z0=7.03, z1=11.57, z2=9.1)
    shown, T = opened.shown, 10**position
    logits = tensor([7.03, 11.57, 9.1])
    close(shown["p"], softmax(logits, temperature=T))
    close(shown["H"], entropy(softmax(logits, temperature=T)))
    heat = tensor(T).requires_grad_()
    entropy(softmax(logits, temperature=heat)).backward()
    close(shown["slope"], heat.grad)
    assert f"Entropy {shown['H']:.3f}" in opened.said


@on("clipping")
@pytest.mark.parametrize("bound", [None, 2.0])
def test_clipping_is_the_loss_of_the_library(opened: Opened, bound: float | None) -> None:
    for advantage, ratio in ((-1.0, 1.5), (-1.5, 0.5), (1.0, 1.5), (0.75, 0.9), (-1.0, 3.0)):
        opened.set(A=advantage, rho=ratio, eps=0.2, c=5.1 if bound is None else bound)
        leaf = tensor([[ratio]]).log().requires_grad_()
        old, yes = torch.zeros_like(leaf), torch.ones(1, 1, dtype=torch.bool)
        loss = ppo_loss(leaf, old, tensor([[advantage]]), yes, clip=0.2, dual_clip=bound)
        (slope,) = torch.autograd.grad(loss, leaf)
        close(opened.shown["value"], -loss.detach())
        close(opened.shown["slope"], -slope.squeeze())


@on("saturation")
@pytest.mark.parametrize("scaled", [True, False])
def test_saturation_is_the_trace_of_the_jacobian(opened: Opened, scaled: bool) -> None:
    opened.set(d=5, scaled=scaled)
    shown = opened.shown
    a = softmax(tensor(opened.data["scores"]) * (1 if scaled else 32**0.5))
    close(shown["a"], a)
    close(shown["trace"], softmax_jacobian(a).trace())
    close(shown["H"], entropy(a))


@on("online")
def test_the_online_softmax_is_the_state_of_the_library(opened: Opened) -> None:
    scores, values = tensor(opened.data["scores"]), tensor(opened.data["values"])
    for read in (1, 5, len(scores)):
        opened.set(t=read, shift=0)
        shown = opened.shown
        # A query of one coordinate makes the scores those of the figure.
        keys, query = scores[:read, None], torch.ones(1, 1, dtype=torch.float64)
        state = attention_state(query, keys, values[:read, None])
        close(shown["m"], state.maximum.squeeze())
        close(shown["ell"], state.normalizer.squeeze())
        close(shown["o"], state.output.squeeze())
        close(shown["direct"], state.output.squeeze())
    opened.set(shift=120)
    assert opened.shown["naive"] == "Infinity"
    close(opened.shown["o"], state.output.squeeze())


@on("rope")
def test_the_score_is_that_of_rotated_vectors(opened: Opened) -> None:
    q = torch.cat([torch.ones(32), torch.zeros(32)]).double()
    for m, n, power in ((24, 9, 4), (137, 11, 3)):
        opened.set(m=m, n=n, base=power)
        rotary = positions.Rotary(64, base=10.0**power)
        turns = rotary(torch.tensor([m, n]), dtype=torch.float64)
        one, other = positions.rotate(q.expand(1, 1, 2, 64), turns)[0, 0]
        # The library keeps its angles in float32 at least.
        torch.testing.assert_close(
            tensor(opened.shown["score"]), one @ other / 32, rtol=0, atol=1e-5
        )
    before = opened.shown["score"]
    opened.run(
        "[...root.querySelectorAll('button')].find((b) => b.textContent.startsWith('Move')).click()"
    )
    assert opened.run("return root.querySelector('[name=m]').value") == "138"
    close(opened.shown["score"], before)


@on("alibi")
def test_the_weights_are_those_of_alibi(opened: Opened) -> None:
    opened.set(H=3, h=2, i=100)
    bias = positions.Alibi(heads=8)(torch.tensor([100]), torch.arange(101), dtype=torch.float64)
    close(opened.shown["slope"], positions.alibi_slopes(8, dtype=torch.float64)[1])
    close(opened.shown["A"], softmax(bias[1, 0]))
    # Fewer heads: the chosen one stays among them.
    opened.set(H=1)
    assert opened.run("return Number(root.querySelector('[name=h]').value)") <= 2


@on("heads")
def test_each_row_of_a_head_is_a_distribution(opened: Opened) -> None:
    for place, sentence in enumerate(opened.data["texts"]):
        opened.set(text=place, layer=4, head=7)
        n = len(sentence["tokens"])
        packed = np.frombuffer(base64.b64decode(sentence["weights"]), np.uint8)
        A = torch.tensor(packed.reshape(6, 12, n, n)[3, 6] / 255.0)
        close(opened.shown["A"], A)
        # Each of n weights was rounded by at most half a step.
        assert (A.sum(1) - 1).abs().max() <= n / 510


@on("heads@interpretability")
def test_the_explorer_shows_the_bytes_of_the_run(opened: Opened) -> None:
    mini, smol = opened.data["texts"]
    n = len(mini["tokens"])
    for kind, name in enumerate(("weights", "norms")):
        opened.set(text=0, kind=kind, layer=4, head=7)
        packed = np.frombuffer(base64.b64decode(mini[name]), np.uint8)
        A = torch.tensor(packed.reshape(6, 12, n, n)[3, 6] / 255.0)
        close(opened.shown["A"], A)
        # Rows of weights are distributions; the largest norm of a head is 1.
        whole = (A.sum(1) - 1).abs().max() if kind == 0 else (A.max() - 1).abs()
        assert whole <= n / 510
    # SmolLM2 has no norms, and nothing above the diagonal.
    opened.set(text=1, kind=1, layer=19, head=7)
    n = len(smol["tokens"])
    below = torch.tril_indices(n, n)
    packed = np.frombuffer(base64.b64decode(smol["weights"]), np.uint8)
    A = torch.zeros(n, n, dtype=torch.float64)
    A[below[0], below[1]] = torch.tensor(packed.reshape(30, 9, -1)[18, 6] / 255.0)
    close(opened.shown["A"], A)
    assert (A.sum(1) - 1).abs().max() <= n / 510
    # Fewer layers: the last one is shown.
    opened.set(text=0, layer=30)
    assert opened.shown["layer"] == 6


@on("ball")
@pytest.mark.parametrize(("kind", "norm"), [(0, math.inf), (1, 2.0), (2, 1.0)])
def test_the_step_is_the_steepest_of_the_library(opened: Opened, kind: int, norm: float) -> None:
    for angle in (25, 118, 270):
        opened.set(angle=angle, p=kind)
        g = torch.tensor(opened.shown["g"], dtype=torch.float64)
        close(opened.shown["step"], robustness.steepest(g[None], norm=norm)[0])
        close(opened.shown["gain"], torch.linalg.vector_norm(g, ord=robustness.dual_norm(norm)))


@on("optimizer")
@pytest.mark.parametrize("method", [0, 1, 2, 3])
def test_the_paths_are_those_of_the_library(opened: Opened, method: int) -> None:
    opened.set(method=method, kappa=17, lr=1.1, mu=0.7)
    curvature, theta = tensor([1.0, 17.0]), tensor([-4.0, 1.5])
    rules = [
        lambda p: optimization.SGD(p, 1.1 / 17),
        lambda p: optimization.Momentum(p, 1.1 / 17, momentum=0.7),
        lambda p: optimization.Nesterov(p, 1.1 / 17, momentum=0.7),
        lambda p: optimization.Adam(p, 1.1 / 17, betas=(0.7, 0.999)),
    ]
    theta.requires_grad_()
    rule, path = rules[method]([theta]), [theta.detach().clone()]
    for _ in range(80):
        theta.grad = (curvature * theta).detach()
        rule.step()
        path.append(theta.detach().clone())
    close(opened.shown["path"], torch.stack(path))


@on("optimizer")
def test_best_rate_and_momentum_are_polyaks(opened: Opened) -> None:
    opened.set(kappa=25)
    opened.run(
        "[...root.querySelectorAll('button')].find((b) => b.textContent.startsWith('Best')).click()"
    )
    rate, momentum, _ = optimization.heavy_ball_optimum(1.0, 25.0)
    # The sliders move in hundredths.
    assert abs(opened.shown["lr"] * 25 - rate * 25) <= 0.0051
    assert (
        abs(opened.run("return Number(root.querySelector('[name=mu]').value)") - momentum) <= 0.0051
    )


@on("bpe")
@pytest.mark.parametrize("text", ["Shall I compare thee to a summer's day?", "吾日三省吾身 42×"])
def test_the_pieces_are_those_of_the_tokenizer(opened: Opened, text: str) -> None:
    merges = opened.data["merges"]
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [b""] * len(merges)
    for place, (left, right) in enumerate(merges):
        tokens[256 + place] = tokens[left] + tokens[right]
    for k in (0, 50, len(merges)):
        opened.set(text=text, k=k)
        bpe = BPE(tuple(tokens[: 256 + k]), tuple(tuple(pair) for pair in merges[:k]))
        expected = [bpe.tokens[i].decode("latin-1") for i in bpe.encode(text)]
        assert opened.shown["tokens"] == expected
    # The merges are Shakespeare's: they join nothing in Chinese.
    assert (len(expected) < len(text.encode())) == text.isascii()


@on("flops")
@pytest.mark.parametrize(("share", "gated"), [(0, False), (2, True)])
def test_operations_are_those_of_the_ledger(opened: Opened, share: int, gated: bool) -> None:
    opened.set(n=9.5, d=11, share=share, gated=gated)
    n = round(2**9.5)
    config = block.TransformerConfig(
        vocab=2,
        dim=2048,
        layers=1,
        heads=32,
        kv_heads=32 // 2**share,
        ff_dim=8192,
        context=n,
        activation="swiglu" if gated else "gelu",
        positions=block.NoPositions(),
    )
    flops, shown = cost.forward_flops(config, n, logits=0), opened.shown
    found = (shown["projections"], shown["attention"], shown["feedForward"])
    assert found == (flops.projections, flops.attention, flops.feed_forward)
    close(shown["crossover"], cost.crossover(config))


@on("smoothing")
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.37])
def test_the_loss_is_smoothed_cross_entropy(opened: Opened, eps: float) -> None:
    opened.set(eps=eps, K=5, gap=2.35)
    z, label = torch.zeros(32, dtype=torch.float64), torch.tensor(3)
    z[3] = 2.35
    close(opened.shown["loss"], cross_entropy(z, label, label_smoothing=eps))
    slope = cross_entropy_backward(z, label, label_smoothing=eps)[3]
    close(opened.shown["slope"], slope)
    if eps:
        z[3] = opened.shown["rest"]
        close(0.0, cross_entropy_backward(z, label, label_smoothing=eps)[3])


@on("opinions")
def test_opinions_join_as_a_softmax_of_their_sum(opened: Opened) -> None:
    opened.set(blank=2, prior=-0.35, left=0.8, right=1.05)
    logs = tensor(opened.data["blanks"][2]["logs"])
    close(opened.shown["p"], softmax(tensor([-0.35, 0.8, 1.05]) @ logs))
    assert (logs < 0).all()


@on("scaling")
@pytest.mark.parametrize("law", [0, 1])
def test_the_law_and_its_best_split_are_the_librarys(opened: Opened, law: int) -> None:
    opened.set(law=law, C=0.3, split=-0.4)
    told, shown = opened.data["laws"][law], opened.shown
    ours = autoregressive.ScalingLaw(
        **{name: told[name] for name in ("E", "A", "B", "alpha", "beta")}
    )
    assert law == 0 or ours == autoregressive.BESIROGLU
    close(shown["best"], tensor(autoregressive.optimal_allocation(ours, shown["C"])))
    close(shown["lowest"], ours.loss(*shown["best"]))
    close(shown["loss"], ours.loss(shown["N"], shown["D"]))
    close(6 * shown["N"] * shown["D"], shown["C"])


class Words:
    """Some words with the vectors that the page holds."""

    def __init__(self, data: dict[str, Any]) -> None:
        packed = np.frombuffer(base64.b64decode(data["vectors"]), np.int8)
        self.words = data["words"]
        self.vectors = torch.tensor(packed.astype(np.float64)).view(-1, data["dim"])
        self.index = {word: place for place, word in enumerate(self.words)}


@on("analogy")
@pytest.mark.parametrize("excluded", [True, False])
def test_analogies_are_answered_as_by_the_library(opened: Opened, excluded: bool) -> None:
    words = Words(opened.data)
    for question in (("man", "king", "woman"), ("france", "paris", "japan")):
        places = [words.index[word] for word in question]
        opened.set(**dict(zip("abc", places, strict=True)), excluded=excluded)
        expected = embeddings.analogy(words, *question, count=5, exclude=excluded)
        found = opened.shown["answers"][:5]
        assert [word for word, _ in found] == [word for word, _ in expected]
        close([cosine for _, cosine in found], tensor([cosine for _, cosine in expected]))
    assert (found[0][0] == "tokyo") or not excluded


@on("signal")
@pytest.mark.parametrize(("kind", "rule"), [(0, "he"), (1, "xavier")])
def test_the_theory_is_a_gaussian_mean(opened: Opened, kind: int, rule: str) -> None:
    """The means over a normal number, by Gauss–Hermite quadrature of many nodes."""
    opened.set(activation=kind, gain=3)
    shown, data = opened.shown, opened.data
    sizes, gain = data["sizes"], data["gains"][3]
    assert shown["gain"] == gain
    points, masses = (tensor(part) for part in np.polynomial.hermite_e.hermegauss(120))
    masses = masses / masses.sum()
    q = [data["measured"][kind][3]["forward"][0]]
    slopes = []
    for before, after in pairwise(sizes[1:]):
        z = points * q[-1] ** 0.5
        h, slope = (z.relu(), (z > 0).double()) if kind == 0 else (z.tanh(), 1 - z.tanh() ** 2)
        variance = weight_variance(rule, before, after, gain=gain)
        q.append(before * variance * float(masses @ h**2))
        slopes.append(after * variance * float(masses @ slope**2))
    # Quadrature of 120 nodes for a tanh: six digits.
    torch.testing.assert_close(tensor(shown["q"]), tensor(q), rtol=1e-6, atol=0)
    steps = tensor(shown["g"][:-1]) / tensor(shown["g"][1:])
    torch.testing.assert_close(steps, tensor(slopes), rtol=1e-6, atol=0)


@on("leace")
@pytest.mark.parametrize(("stretch", "angle"), [(1.0, 0), (2.5, 35), (3.7, 110)])
def test_leace_erases_as_the_library_does(opened: Opened, stretch: float, angle: int) -> None:
    costs = []
    for kind in range(4):
        opened.set(kind=kind, stretch=stretch, angle=angle)
        shown = opened.shown
        x = tensor(shown["x"])
        side = (torch.arange(len(x)) >= len(x) // 2).long()
        fitter = debiasing.ErasureFitter(2, 2).update(x, side)
        want = [
            x,
            fitter.eraser("orthogonal")(x),
            fitter.eraser()(x),
            fitter.oracle()(x, side),
        ][kind]
        close(shown["after"], want)
        close(shown["cost"], (want - x).square().sum(1).mean())
        costs.append(shown["cost"])
        if kind:
            assert shown["apart"] < 1e-9
    close(opened.shown["costs"], costs)
    assert costs[3] <= costs[2] <= costs[1]


@on("verifier")
@pytest.mark.parametrize(("p", "t", "f"), [(0.3, 0.9, 0.2), (0.62, 0.4, 0.7), (0.5, 1.0, 0.0)])
def test_answers_are_chosen_as_the_library_counts(
    opened: Opened, p: float, t: float, f: float
) -> None:
    right = torch.tensor(p, dtype=torch.float64)
    for n in (1, 2, 8, 63):
        opened.set(p=p, t=t, f=f, n=n)
        shown = opened.shown
        close(shown["pass"], 1 - (1 - right) ** n)
        close(shown["majority"], reasoning.majority_accuracy(right, n=n))
        close(shown["best"], reasoning.best_of_n_success(right, n=n, t=t, f=f))
        close(shown["ceiling"], reasoning.verifier_ceiling(right, t=t, f=f))


@on("bm25")
@pytest.mark.parametrize(("k1", "b"), [(15, 15), (0, 20), (40, 0), (7, 9)])
def test_occurrences_count_as_in_the_library(opened: Opened, k1: int, b: int) -> None:
    opened.set(k1=k1, b=b)
    shown = opened.shown
    close(shown["k1"], k1 / 10)
    close(shown["b"], b / 20)
    counts = torch.arange(13.0, dtype=torch.float64)
    for length, found in zip(shown["lengths"], shown["table"], strict=True):
        lengths = torch.full_like(counts, length)
        close(found, bm25_saturation(counts, lengths, k1=k1 / 10, b=b / 20))
