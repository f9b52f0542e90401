"""The reader at work: every notation of the book, once right and several times wrong."""

# ruff: noqa: E501 - a formula stands on one line

import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from companion.verify import VerificationError, generic
from companion.verify.tex import over, samples, table
from companion.verify.tex._page import check

REFUSED = r"differ by|violated|standard errors off|one side holds|is flat|have the shapes"


def draw(*shape, seed=0, **kw):
    return generic(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), **kw)


def law(*shape, seed=0):
    return torch.softmax(draw(*shape, seed=seed).flatten(), 0).view(shape)


def softmax(z):
    return torch.softmax(z, -1)


def entropy(p):
    return -(p * p.log()).sum()


def lse(z):
    return torch.logsumexp(z, -1)


X, W, U, V = draw(5, 7), draw(7, 3), draw(3, 5), draw(3, 5, seed=1)
Z, Y, S = draw(4), law(4, seed=9), draw(3, 5, seed=2)
J = law(3, 5)
PX, PY = J.sum(1), J.sum(0)
PMI = (J / (PX[:, None] * PY)).log()
ATTENTION = {
    "O": lambda A, V: A @ V,
    "A": lambda S: softmax(S),
    "S": lambda Q, K, d_k: Q @ K.T / d_k**0.5,
    "Q": draw(2, 5),
    "K": draw(3, 5),
    "V": draw(3, 4),
    "dO": draw(2, 4),
    "d_k": 5,
}
STEPS = (torch.arange(3)[:, None] - torch.arange(5)).double()
TRIANGLE = torch.where(torch.arange(3)[:, None] < torch.arange(5), -1e9, 0.0).double()
JOINT = {
    r"\mathbb E_{p(x,y)}": over(J, "x", "y"),
    r"\mathbb E_{p(x)p(y)}": over(PX[:, None] * PY, "x", "y"),
}


SUBSETS = [frozenset(chosen) for k in range(4) for chosen in combinations((1, 2, 3), k)]


def bound_readings():
    for scale in (0.001, 0.3, 2.0):
        z = scale * draw(4)
        yield {"a": softmax(z), "n": 4}


# name: formula, reading, options, wrong formulas
NOTATIONS = {
    "products of matrices and a row": (
        r"Y=XW+b",
        {"Y": lambda X, W, b: F.linear(X, W.T, b), "X": X, "W": W, "b": draw(3)},
        {},
        [r"Y=XW-b", r"Y=XW", r"Y=XW+2b"],
    ),
    "entries and a sum over an index": (
        r"Y_{ik}=\sum_{j=1}^dX_{ij}W_{jk}",
        {"Y": X @ W, "X": X, "W": W, "d": 7},
        {},
        [
            r"Y_{ik}=\sum_{j=1}^{d-1}X_{ij}W_{jk}",
            r"Y_{ik}=\sum_{j=2}^dX_{ij}W_{jk}",
            r"Y_{ik}=-\sum_{j=1}^dX_{ij}W_{jk}",
        ],
    ),
    "a sum over what the arrays have": (
        r"\mathrm{lse}(z)=\log\sum_je^{z_j}",
        {"lse": lse, "z": Z},
        {},
        [r"\mathrm{lse}(z)=\log\sum_je^{-z_j}", r"\mathrm{lse}(z)=\sum_j\log e^{z_j}"],
    ),
    "softmax in a fraction": (
        r"L=-\frac1N\sum_{i=1}^N\log\frac{e^{u_i\cdot v_i/\tau}}{\sum_{j=1}^Ne^{u_i\cdot v_j/\tau}}",
        {
            "L": lambda u, v, tau: F.cross_entropy(u @ v.T / tau, torch.arange(3)),
            "u": U,
            "v": V,
            "tau": 0.7,
            "N": 3,
        },
        {},
        [
            r"L=-\frac1N\sum_{i=1}^N\log\frac{e^{u_i\cdot v_i/\tau}}{\sum_{j=1}^Ne^{u_j\cdot v_i/\tau}}",
            r"L=-\frac1N\sum_{i=1}^N\log\frac{e^{u_i\cdot v_i/\tau}}{\sum_{j=1}^Ne^{u_i\cdot v_j\tau}}",
            r"L=-\sum_{i=1}^N\log\frac{e^{u_i\cdot v_i/\tau}}{\sum_{j=1}^Ne^{u_i\cdot v_j/\tau}}",
            r"L=\frac1N\sum_{i=1}^N\log\frac{e^{u_i\cdot v_i/\tau}}{\sum_{j=1}^Ne^{u_i\cdot v_j/\tau}}",
        ],
    ),
    "what the display itself defines": (
        (
            r"o_i=\frac{\sum_{j=1}^m\kappa(q_i,k_j)\,v_j}{\sum_{j=1}^m\kappa(q_i,k_j)},\qquad"
            r"\kappa(q,k)=e^{q\cdot k/\sqrt{d_k}}"
        ),
        {
            "o": lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
            "q": ATTENTION["Q"],
            "k": ATTENTION["K"],
            "v": ATTENTION["V"],
            "d_k": 5,
            "m": 3,
        },
        {},
        [
            (
                r"o_i=\frac{\sum_{j=1}^m\kappa(q_i,k_j)\,v_j}{\sum_{j=1}^m\kappa(q_i,k_j)},\qquad"
                r"\kappa(q,k)=e^{q\cdot k/d_k}"
            ),
            (
                r"o_i=\frac{\sum_{j=1}^m\kappa(q_i,k_j)\,v_j}{\sum_{j=1}^m\kappa(k_j,q_i)^2},\qquad"
                r"\kappa(q,k)=e^{q\cdot k/\sqrt{d_k}}"
            ),
        ],
    ),
    "a definition with an index": (
        r"y_i=\sum_jw_jX_{ij},\qquad w_j=e^{b_j}",
        {"y": X @ draw(7, seed=3).exp(), "X": X, "b": draw(7, seed=3)},
        {},
        [r"y_i=\sum_jw_jX_{ij},\qquad w_j=e^{-b_j}"],
    ),
    "partial derivative by an array": (
        r"\frac{\partial L}{\partial z}=p-y",
        {
            "L": lambda z, y: lse(z) - y @ z,
            "p": lambda z: softmax(z),
            "z": Z,
            "y": Y,
        },
        {},
        [r"\frac{\partial L}{\partial z}=p+y", r"\frac{\partial L}{\partial z}=y-p"],
    ),
    "partial derivative by an entry": (
        r"\frac{\partial H}{\partial s_j}=-a_j\,\big(\log a_j+H\big)",
        {"a": lambda s: softmax(s), "H": lambda a: entropy(a), "s": Z},
        {},
        [r"\frac{\partial H}{\partial s_j}=-a_j\,\big(\log a_j-H\big)"],
    ),
    "derivative of what follows": (
        r"\frac{\partial}{\partial z}\,\mathrm{lse}(z)^2=2\,\mathrm{lse}(z)\,p",
        {"lse": lse, "p": lambda z: softmax(z), "z": Z},
        {},
        [r"\frac{\partial}{\partial z}\,\mathrm{lse}(z)^2=\mathrm{lse}(z)\,p"],
    ),
    "Jacobian, the variable first": (
        r"\frac{\partial y}{\partial x}=W",
        {"y": lambda x, W: x @ W, "x": draw(7), "W": W},
        {},
        [r"\frac{\partial y}{\partial x}=-W", r"\frac{\partial y}{\partial x}=W^\top"],
    ),
    "entries of a Jacobian": (
        r"\frac{\partial p_j}{\partial z_i}=p_j\,(\delta_{ij}-p_i)",
        {"p": lambda z: softmax(z), "z": Z},
        {},
        [
            r"\frac{\partial p_j}{\partial z_i}=p_j\,(\delta_{ij}+p_i)",
            r"\frac{\partial p_j}{\partial z_i}=p_i\,(\delta_{ij}-p_i)",
        ],
    ),
    "gradient and Hessian by nabla": (
        r"\nabla_z^2L=\operatorname{diag}(p)-p^\top p,\qquad\nabla_zL=p-y",
        {"L": lambda z, y: lse(z) - y @ z, "p": lambda z: softmax(z), "z": Z, "y": Y},
        {},
        [
            r"\nabla_z^2L=\operatorname{diag}(p)+p^\top p,\qquad\nabla_zL=p-y",
            r"\nabla_z^2L=\operatorname{diag}(p)-p^\top p,\qquad\nabla_zL=2p-y",
        ],
    ),
    "nabla of a function at a point": (
        r"\nabla\,\mathrm{lse}(z)=p",
        {"lse": lse, "p": softmax(Z), "z": Z},
        {},
        [r"\nabla\,\mathrm{lse}(z)=-p"],
    ),
    "nabla by a name, of two arguments": (
        r"\nabla_u\cos(u,v)=\frac{1}{\lVert u\rVert}\left(\hat v-\cos(u,v)\,\hat u\right)",
        {
            "cos": lambda u, v: F.cosine_similarity(u, v, dim=0),
            "u": draw(5),
            "v": draw(5, seed=1),
            r"\hat u": lambda u: u / u.norm(),
            r"\hat v": lambda v: v / v.norm(),
        },
        {"equivalent": {r"\hat v for v": "the cosine does not see a length"}},
        [
            r"\nabla_u\cos(u,v)=\frac{1}{\lVert u\rVert}\left(\hat v+\cos(u,v)\,\hat u\right)",
            r"\nabla_u\cos(u,v)=\frac{1}{\lVert u\rVert}\left(\hat u-\cos(u,v)\,\hat v\right)",
            r"\nabla_u\cos(u,v)=\frac{1}{\lVert v\rVert}\left(\hat v-\cos(u,v)\,\hat u\right)",
        ],
    ),
    "primes": (
        r"\mathrm{SiLU}'(x)=\sigma(x)+x\,\sigma(x)\,\big(1-\sigma(x)\big)",
        {"SiLU": F.silu, "sigma": torch.sigmoid, "x": torch.tensor(0.73).double()},
        {},
        [
            r"\mathrm{SiLU}'(x)=\sigma(x)+x\,\sigma(x)\,\big(1+\sigma(x)\big)",
            r"\mathrm{SiLU}'(x)=\sigma(x)+\sigma(x)\,\big(1-\sigma(x)\big)",
        ],
    ),
    "a second derivative by primes": (
        r"A''(t)=p\,(1-p)",
        {"A": F.softplus, "p": lambda t: torch.sigmoid(t), "t": torch.tensor(0.4).double()},
        {"equivalent": {"sign of the argument of A''(t)": "the slope of a sigmoid is even"}},
        [r"A''(t)=p\,(1+p)", r"A'(t)=p\,(1-p)"],
    ),
    "d by d, and the place where it is taken": (
        r"\frac{d^2}{dt^2}\,\mathrm{KL}(p\Vert p+tv)\Big|_{t=0}=\sum_x\frac{v_x^2}{p_x}",
        {
            "KL": lambda p, q: (p * (p / q).log()).sum(),
            "p": Y,
            "v": torch.tensor([0.1, -0.2, 0.15, -0.05]).double(),
            "t": 0.3,
        },
        {},
        [
            r"\frac{d^2}{dt^2}\,\mathrm{KL}(p\Vert p+tv)\Big|_{t=0}=\sum_x\frac{v_x^2}{2p_x}",
            r"\frac{d}{dt}\,\mathrm{KL}(p\Vert p+tv)\Big|_{t=0}=\sum_x\frac{v_x^2}{p_x}",
        ],
    ),
    "adjoints written with d": (
        r"dS=A\odot\big(dA-\mathrm{rowsum}(dA\odot A)\big),\qquad dA=dO\,V^\top",
        ATTENTION,
        {"loss": lambda O, dO: (O * dO).sum()},  # noqa: E741
        [
            r"dS=A\odot\big(dA+\mathrm{rowsum}(dA\odot A)\big),\qquad dA=dO\,V^\top",
            r"dS=A\odot\big(dA-\mathrm{rowsum}(dA\odot dA)\big),\qquad dA=dO\,V^\top",
            r"dS=A\odot dA,\qquad dA=dO\,V^\top",
            r"dS=A\odot\big(dA-\mathrm{rowsum}(dA\odot A)\big),\qquad dA=2dO\,V^\top",
        ],
    ),
    "adjoints written with a bar": (
        r"\bar X=\bar Y\,W^\top,\qquad\bar W=X^\top\bar Y",
        {"X": X, "W": W, "Y": lambda X, W: X @ W, r"\bar Y": draw(5, 3)},
        {"loss": lambda Y, bar_Y: (Y * bar_Y).sum()},
        [
            r"\bar X=\bar Y\,W^\top,\qquad\bar W=-X^\top\bar Y",
            r"\bar X=\bar Y\,W^\top,\qquad\bar W=X^\top Y",
        ],
    ),
    "a chain of equalities": (
        r"1+c=\frac{1}{1-r}=e^{2I}",
        {"c": 1 / 0.7 - 1, "r": 0.3, "I": -0.5 * math.log(0.7)},
        {},
        [r"1+c=\frac{1}{1+r}=e^{2I}", r"1+c=\frac{1}{1-r}=e^{I}"],
    ),
    "bounds on both sides": (
        r"H(a)\le\log n",
        [{**r, "H": entropy} for r in bound_readings()],
        {},
        [r"H(a)\ge\log n", r"H(a)\le\log n-1", r"H(a)\le 2\log n", r"H(a)\le\log(n+1)"],
    ),
    "a chain of bounds with norms and a maximum": (
        (
            r"\lVert o_i\rVert=\Big\lVert\sum_ja_{ij}v_j\Big\rVert\le\sum_ja_{ij}\lVert v_j\rVert"
            r"\le\max_j\lVert v_j\rVert"
        ),
        [
            {
                "a": softmax(e * draw(2, 3)),
                "v": draw(3, 5),
                "o": softmax(e * draw(2, 3)) @ draw(3, 5),
            }
            for e in (0.1, 1.0, 30.0)
        ],
        {},
        [
            (
                r"\lVert o_i\rVert=\Big\lVert\sum_ja_{ij}v_j\Big\rVert\le\sum_ja_{ij}\lVert v_j\rVert"
                r"\le\min_j\lVert v_j\rVert"
            ),
            (
                r"\lVert o_i\rVert=\Big\lVert\sum_ja_{ij}v_j\Big\rVert\ge\sum_ja_{ij}\lVert v_j\rVert"
                r"\le\max_j\lVert v_j\rVert"
            ),
        ],
    ),
    "a spectral norm and a diagonal": (
        r"\lVert\operatorname{diag}(a)-a^\top a\rVert_2\le\tfrac12",
        [{"a": softmax(e * draw(n))} for n in (2, 5, 7) for e in (0.03, 1.0, 5.0)],
        {},
        [
            r"\lVert\operatorname{diag}(a)-a^\top a\rVert_2\le\tfrac13",
            r"\lVert\operatorname{diag}(a)-a^\top a\rVert_2\le1",
            r"\lVert\operatorname{diag}(a)+a^\top a\rVert_2\le\tfrac12",
        ],
    ),
    "expectations over a finite law": (
        r"c=\mathbb E_{p(x)p(y)}\big[(r-1)^2\big]=\mathbb E_{p(x,y)}[r]-1",
        {
            **JOINT,
            "r": lambda x, y: PMI.exp()[x - 1, y - 1],
            "c": ((PMI.exp() - 1) ** 2 * PX[:, None] * PY).sum(),
        },
        {},
        [
            r"c=\mathbb E_{p(x,y)}\big[(r-1)^2\big]=\mathbb E_{p(x,y)}[r]-1",
            r"c=\mathbb E_{p(x)p(y)}\big[(r-1)^2\big]=\mathbb E_{p(x)p(y)}[r]-1",
            r"c=\mathbb E_{p(x)p(y)}\big[(r+1)^2\big]=\mathbb E_{p(x,y)}[r]-1",
        ],
    ),
    "an expectation of a table in a bound": (
        r"I(X;Y)\ge\mathbb E_{p(x,y)}f(x,y)-\log\mathbb E_{p(x)p(y)}e^{f(x,y)}",
        [
            {**JOINT, "I(X;Y)": (J * PMI).sum(), "f": table(PMI + e * draw(3, 5))}
            for e in (0.01, 0.3, 1.0)
        ],
        {},
        [r"I(X;Y)\le\mathbb E_{p(x,y)}f(x,y)-\log\mathbb E_{p(x)p(y)}e^{f(x,y)}"],
    ),
    "a variance over a finite law": (
        r"\sum_kp_kv_k^2-\Big(\sum_kp_kv_k\Big)^2=\mathrm{Var}_{k\sim p}(v_k)",
        {"p": Y, "v": Z, r"\mathrm{Var}_{k\sim p}": over(Y, "k")},
        {},
        [
            r"\sum_kp_kv_k^2+\Big(\sum_kp_kv_k\Big)^2=\mathrm{Var}_{k\sim p}(v_k)",
            r"\sum_kp_kv_k^2-\sum_kp_kv_k=\mathrm{Var}_{k\sim p}(v_k)",
        ],
    ),
    "a limit": (
        r"\lim_{n\to\infty}n\,\big(e^{x/n}-1\big)=x",
        {"x": 1.3},
        {"tol": 1e-8},
        [
            r"\lim_{n\to\infty}n\,\big(e^{x/n}-1\big)=x^2",
            r"\lim_{n\to\infty}n\,\big(e^{2x/n}-1\big)=x",
        ],
    ),
    "a series": (
        r"e^x=\sum_{k\ge0}\frac{x^k}{k!}",
        {"x": 1.3},
        {},
        [r"e^x=\sum_{k\ge1}\frac{x^k}{k!}", r"e^x=\sum_{k\ge0}\frac{x^k}{(k+1)!}"],
    ),
    "a sum to infinity": (
        r"\frac1{1-x}=\sum_{k=0}^\infty x^k",
        {"x": 0.3},
        {},
        [r"\frac1{1-x}=\sum_{k=1}^\infty x^k"],
    ),
    "a set of an index": (
        r"o_i=\frac{\sum_{j\in R(i)}e^{s_{ij}}v_j}{\sum_{j\in R(i)}e^{s_{ij}}}",
        {
            "s": S,
            "v": draw(5, 2),
            "R": lambda i: range(1, i + 1),
            "o": softmax(S + TRIANGLE) @ draw(5, 2),
        },
        {},
        [r"o_i=\frac{\sum_{j\in R(i)}e^{s_{ij}}v_j}{\sum_{j}e^{s_{ij}}}"],
    ),
    "a condition below a sum and one beside it": (
        r"A_{ij}=\frac{e^{S_{ij}}\,e^{-\mu_h(i-j)}}{\sum_{l\le i}e^{S_{il}}\,e^{-\mu_h(i-l)}},\qquad j\le i",
        {
            "S": S,
            "mu_h": 0.3,
            "A": softmax(S - 0.3 * STEPS + TRIANGLE),
        },
        {"special": {"A": "causal weights have zeros"}},
        [
            r"A_{ij}=\frac{e^{S_{ij}}\,e^{-\mu_h(i-j)}}{\sum_{l}e^{S_{il}}\,e^{-\mu_h(i-l)}},\qquad j\le i",
            r"A_{ij}=\frac{e^{S_{ij}}\,e^{-\mu_h(i-j)}}{\sum_{l\le i}e^{S_{il}}\,e^{\mu_h(i-l)}},\qquad j\le i",
            r"A_{ij}=\frac{e^{S_{ij}}\,e^{-\mu_h(i-j)}}{\sum_{l\le i}e^{S_{il}}\,e^{-\mu_h(i-l)}}",
        ],
    ),
    "a sum over unequal pairs": (
        r"s=\frac1{n^2-n}\sum_{i\ne j}u_i\cdot u_j=\frac{\big\lVert\sum_iu_i\big\rVert^2-n}{n^2-n}",
        (lambda u: {"s": ((u @ u.T).sum() - 3) / 6, "u": u, "n": 3})(F.normalize(U)),
        {},
        [
            r"s=\frac1{n^2-n}\sum_{i<j}u_i\cdot u_j=\frac{\big\lVert\sum_iu_i\big\rVert^2-n}{n^2-n}",
            r"s=\frac1{n^2-n}\sum_{i\ne j}u_i\cdot u_j=\frac{\big\lVert\sum_iu_i\big\rVert^2+n}{n^2-n}",
        ],
    ),
    "a sum under a condition after a colon": (
        r"\bar E_v=\sum_{t\,:\,i_t=v}\bar x_t",
        {
            r"\bar E": torch.stack(
                [draw(5, 2)[[0, 3]].sum(0), draw(5, 2)[[1]].sum(0), draw(5, 2)[[2, 4]].sum(0)]
            ),
            r"\bar x": draw(5, 2),
            "i": torch.tensor([1, 2, 3, 1, 3]),
        },
        {},
        [r"\bar E_v=\sum_{t\,:\,i_t\ne v}\bar x_t", r"\bar E_v=\sum_{t}\bar x_t"],
    ),
    "an indicator": (
        r"\frac{\partial L}{\partial s_{ij}}=\frac{p_{ij}-\mathbb 1[i=j]}{N\tau}",
        {
            "L": lambda s, tau: F.cross_entropy(s / tau, torch.arange(3)),
            "p": lambda s, tau: softmax(s / tau),
            "s": S,
            "N": 3,
            "tau": 0.7,
        },
        {},
        [
            r"\frac{\partial L}{\partial s_{ij}}=\frac{p_{ij}-\mathbb 1[i\ne j]}{N\tau}",
            r"\frac{\partial L}{\partial s_{ij}}=\frac{p_{ij}-\mathbb 1[i=j]}{N}",
        ],
    ),
    "floor": (
        r"g_i=\Big\lfloor\frac{i\,m}{n}\Big\rfloor",
        {"g": torch.tensor([0, 0, 0, 1, 1, 2, 2, 3]), "m": 3, "n": 7, "i": range(8)},
        {"origin": 0},
        [r"g_i=\Big\lceil\frac{i\,m}{n}\Big\rceil", r"g_i=\Big\lfloor\frac{i\,n}{m}\Big\rfloor"],
    ),
    "cases": (
        r"y_i=\begin{cases}x_i&x_i>c\\c\,x_i&\text{otherwise}\end{cases}",
        {"y": torch.where(Z > 0.1, Z, 0.1 * Z), "x": Z, "c": 0.1},
        {},
        [
            r"y_i=\begin{cases}c\,x_i&x_i>c\\x_i&\text{otherwise}\end{cases}",
            r"y_i=\begin{cases}x_i&x_i<c\\c\,x_i&\text{otherwise}\end{cases}",
        ],
    ),
    "matrices of numbers": (
        r"\det\begin{pmatrix}1+\mu-\lambda&2\\-\mu&\lambda\end{pmatrix}=\lambda(1+\mu-\lambda)+2\mu",
        {"mu": 0.7, "lambda": 0.4},
        {},
        [
            r"\det\begin{pmatrix}1+\mu-\lambda&2\\\mu&\lambda\end{pmatrix}=\lambda(1+\mu-\lambda)+2\mu"
        ],
    ),
    "matrices of blocks": (
        r"HB-c\,u=\begin{bmatrix}H&-c\end{bmatrix}\begin{bmatrix}B\\u\end{bmatrix}",
        {"H": draw(5, 2), "B": draw(2, 3), "u": draw(3), "c": draw(5)[:, None]},
        {"special": {"c": "a column, as the formula has it"}},
        [
            r"HB-c\,u=\begin{bmatrix}H&c\end{bmatrix}\begin{bmatrix}B\\u\end{bmatrix}",
            r"HB-c\,u=\begin{bmatrix}-H&-c\end{bmatrix}\begin{bmatrix}B\\u\end{bmatrix}",
        ],
    ),
    "rows joined in brackets": (
        r"\mathrm{softmax}\big([s;b]\big)_j=\frac{e^{s_j}}{e^b+\sum_ke^{s_k}}",
        {"s": Z, "b": 0.4, "j": range(1, 5)},
        {},
        [r"\mathrm{softmax}\big([s;b]\big)_j=\frac{e^{s_j}}{e^{-b}+\sum_ke^{s_k}}"],
    ),
    "inverse, ridge": (
        r"\hat w=(X^\top X+\lambda I)^{-1}X^\top y",
        {
            r"\hat w": torch.linalg.solve(
                X.T @ X + 0.4 * torch.eye(7).double(), X.T @ draw(5)[:, None]
            ),
            "X": X,
            "y": draw(5)[:, None],
            "lambda": 0.4,
            "I": torch.eye(7).double(),
        },
        {"special": {r"\hat w": "a column", "y": "a column"}},
        [
            r"\hat w=(X^\top X-\lambda I)^{-1}X^\top y",
            r"\hat w=(X^\top X+I)^{-1}X^\top y",
            r"\hat w=(X^\top X+\lambda I)X^\top y",
        ],
    ),
    "a power of a matrix": (
        r"\theta_t=\theta_0\,(I-\eta H)^t",
        (
            lambda h: {
                r"\theta_t": draw(3)
                @ torch.linalg.matrix_power(torch.eye(3).double() - 0.2 * h, 4),
                r"\theta_0": draw(3),
                "I": torch.eye(3).double(),
                "H": h,
                "eta": 0.2,
                "t": 4,
            }
        )(draw(3, 5) @ draw(3, 5).T),
        {"special": {"H": "a Hessian is symmetric"}},
        [r"\theta_t=\theta_0\,(I+\eta H)^t", r"\theta_t=\theta_0\,(I-\eta H)^{t-1}"],
    ),
    "inner products and means in angles": (
        r"\langle G,O\rangle=n\,\langle G\odot O\rangle",
        {"G": draw(3, 5), "O": draw(3, 5, seed=1), "n": 15},
        {},
        [
            r"\langle G,O\rangle=\langle G\odot O\rangle",
            r"\langle G,O\rangle=n\,\langle G\odot G\rangle",
        ],
    ),
    "a mean under a line": (
        r"m=n\,\overline{x^2}",
        {"m": (Z**2).sum(), "x": Z, "n": 4},
        {},
        [r"m=n\,\overline{x^3}", r"m=\overline{x^2}"],
    ),
    "an update": (
        r"S_{ij}\leftarrow S_{ij}-\mu_h(i-j),\qquad j\le i",
        {"S": S, r"S\leftarrow": S - 0.3 * STEPS, "mu_h": 0.3},
        {},
        [
            r"S_{ij}\leftarrow S_{ij}+\mu_h(i-j),\qquad j\le i",
            r"S_{ij}\leftarrow S_{ij}-\mu_h(i+j)",
        ],
    ),
    "proportional over an index": (
        r"p_i\propto e^{z_i}",
        {"p": softmax(Z), "z": Z},
        {"equivalent": {r"e^{z_{i}} doubled": "a factor does not matter"}},
        [r"p_i\propto e^{-z_i}", r"p_i\propto z_i"],
    ),
    "approximately": (
        r"\sum_{i=1}^ni\approx\frac{n^2}2",
        {"n": 200},
        {
            "approx": 0.01,
            "tol": 1e-3,
            "equivalent": {
                r"\sum from one later": "one term of 200 is within the approximation",
                r"\sum to one earlier": "one term of 200 is within the approximation",
                "2 for 1": "one term of 200 is within the approximation",
            },
        },
        [r"\sum_{i=1}^ni\approx\frac{n^2}3"],
    ),
    "equivalence over all indices": (
        r"\frac{\partial g_i}{\partial x_j}\ne0\iff r_j<r_i",
        {
            "g": lambda x: torch.stack([x[1] ** 2, 0 * x[0], x[0] * x[1]]),
            "x": draw(3),
            "r": torch.tensor([2, 1, 3]),
        },
        {},
        [
            r"\frac{\partial g_i}{\partial x_j}\ne0\iff r_j\le r_i",
            r"\frac{\partial g_i}{\partial x_j}\ne0\iff r_j>r_i",
            r"\frac{\partial g_j}{\partial x_i}\ne0\iff r_j<r_i",
        ],
    ),
    "what follows from a definition": (
        r"b'=b\,s^{d/(d-2)}\quad\Longrightarrow\quad\omega=(b')^{-i}",
        {"omega": (10.0 * 3.0 ** (8 / 6)) ** -0.7, "b": 10.0, "s": 3.0, "d": 8, "i": 0.7},
        {},
        [r"b'=b\,s^{d/(d+2)}\quad\Longrightarrow\quad\omega=(b')^{-i}"],
    ),
    "both signs at once": (
        r"p_\pm=\frac{1\pm\sqrt{1-4a\eta}}{2a}",
        {"p_+": (1 + 0.76**0.5) / 0.6, "p_-": (1 - 0.76**0.5) / 0.6, "a": 0.3, "eta": 0.2},
        {},
        [r"p_\pm=\frac{1\mp\sqrt{1-4a\eta}}{2a}", r"p_\pm=\frac{1\pm\sqrt{1+4a\eta}}{2a}"],
    ),
    "the best index": (
        r"\arg\max_xa_x=\arg\max_x\big[a_x+c\big]",
        [{"a": draw(5, seed=s), "c": 0.4} for s in range(4)],
        {
            "equivalent": {
                "without c": "a constant moves no maximum",
                "sign of c": "a constant moves no maximum",
            }
        },
        [r"\arg\max_xa_x=\arg\min_x\big[a_x+c\big]"],
    ),
    "parts of an array": (
        r"y_t=\lVert X_{\le t}\rVert+\lVert X_{:t}\rVert",
        {
            "y": torch.stack([X[: t + 1].norm() + X[:, t].norm() for t in range(5)]),
            "X": X,
            "t": range(1, 6),
        },
        {},
        [r"y_t=\lVert X_{<t}\rVert+\lVert X_{:t}\rVert"],
    ),
    "binomials": (
        r"P_k=\binom nkp^k(1-p)^{n-k}",
        {
            "P": torch.tensor(
                [math.comb(5, k) * 0.3**k * 0.7 ** (5 - k) for k in range(6)], dtype=torch.float64
            ),
            "n": 5,
            "p": 0.3,
        },
        {"origin": 0},
        [r"P_k=\binom nkp^k(1+p)^{n-k}", r"P_k=\binom nkp^{n-k}(1-p)^{k}"],
    ),
    "subsets of each size, and the members of each": (
        r"\prod_{i=1}^n(1+tp_i)=\sum_{k=0}^nt^k\sum_{\mathcal M:|\mathcal M|=k}\prod_{i\in\mathcal M}p_i",
        {"p": draw(3), "n": 3, "t": 0.7, r"\mathcal M": SUBSETS},
        {},
        [
            r"\prod_{i=1}^n(1+tp_i)=\sum_{k=0}^nt^k\sum_{\mathcal M:|\mathcal M|\le k}\prod_{i\in\mathcal M}p_i",
            r"\prod_{i=1}^n(1+tp_i)=\sum_{k=0}^nt^k\sum_{\mathcal M:|\mathcal M|=k}\prod_{i\notin\mathcal M}p_i",
        ],
    ),
    "a quantity of a set": (
        r"\prod_{i=1}^n(1+p_i)=\sum_{\mathcal M}P(\mathcal M)=\sum_{\mathcal M}w",
        {
            "p": draw(3),
            "n": 3,
            r"\mathcal M": SUBSETS,
            "P": lambda chosen: math.prod(draw(3)[i - 1] for i in chosen),
            "w": lambda mathcal_M: math.prod(draw(3)[i - 1] for i in mathcal_M),
        },
        {},
        [r"\prod_{i=1}^n(1+p_i)=\sum_{\mathcal M}P(\mathcal M)^2=\sum_{\mathcal M}w"],
    ),
    "a set that is given as a list": (
        r"s=\sum_{i\in C_t}x_i",
        {"s": Z[0] + Z[2], "C_t": [1, 3], "x": Z},
        {},
        [r"s=\sum_{i\notin C_t}x_i", r"s=\sum_{i\in C_t}x_i^2"],
    ),
    "all sets of a list": (
        r"P(C)=\prod_{i\in C}x_i",
        {"P": lambda C: math.prod(Z[i - 1] for i in C), "C": SUBSETS, "x": Z},
        {},
        [r"P(C)=\sum_{i\in C}x_i"],
    ),
    "a function of an index": (
        r"s_{tj}=R_{t-j}",
        {"R": lambda steps: math.exp(-0.3 * steps), "s": (-0.3 * STEPS).exp()},
        {"special": {"s": "it has equal diagonals"}},
        [r"s_{tj}=R_{j-t}", r"s_{tj}=R_{t-j+1}"],
    ),
    "a diagonal of an indexed term": (
        r"\frac{\partial y}{\partial z}=\mathrm{diag}_i\big(1-y_i^2\big)",
        {"y": lambda z: torch.tanh(z), "z": Z},
        {},
        [
            r"\frac{\partial y}{\partial z}=\mathrm{diag}_i\big(1+y_i^2\big)",
            r"\frac{\partial y}{\partial z}=\mathrm{diag}_i\big(1-y_i\big)",
        ],
    ),
    "aligned lines": (
        r"\begin{aligned}y&=(a+b)^2\\&=a^2+2ab\\&\quad+b^2,\\z&=\begin{pmatrix}a&b\\-b&a\end{pmatrix}\end{aligned}",
        {
            "y": 2.56,
            "z": torch.tensor([[1.3, 0.3], [-0.3, 1.3]], dtype=torch.float64),
            "a": 1.3,
            "b": 0.3,
        },
        {"special": {"z": "it holds two numbers"}},
        [
            r"\begin{aligned}y&=(a+b)^2\\&=a^2+2ab\\&\quad-b^2,\\z&=\begin{pmatrix}a&b\\-b&a\end{pmatrix}\end{aligned}",
            r"\begin{aligned}y&=(a+b)^2\\&=a^2+2ab\\&\quad+b^2,\\z&=\begin{pmatrix}a&b\\b&a\end{pmatrix}\end{aligned}",
        ],
    ),
    "the imaginary unit": (
        r"e^{\mathrm i(\theta+t)}=\cos(\theta+t)+\mathrm i\sin(\theta+t)",
        {"theta": 0.7, "t": 0.4},
        {},
        [r"e^{\mathrm i(\theta+t)}=\cos(\theta+t)-\mathrm i\sin(\theta+t)"],
    ),
    "a transposed pseudo-inverse": (
        r"B=X^{+\top}",
        {"B": torch.linalg.pinv(X).T, "X": X},
        {},
        [r"B=X^{+}", r"B=-X^{+\top}"],
    ),
    "a prime at a function that needs no reading": (
        r"\tanh'(x)=1-\tanh^2(x)",
        {"x": 0.7},
        {
            "equivalent": {
                r"sign of the argument of \tanh'(x)": "the slope is even",
                r"sign of the argument of \tanh(x)": "its square is even",
            }
        },
        [r"\tanh'(x)=1-\tanh(x)", r"\tanh''(x)=1-\tanh^2(x)"],
    ),
    "a primed name": (
        r"\Delta'=\Delta+c",
        {"Delta'": 1.3, "Delta": 0.9, "c": 0.4},
        {},
        [r"\Delta=\Delta'+c", r"\Delta'=\Delta-c"],
    ),
    "a logarithm that is a whole number": (
        r"a_n=\lceil\log_kn\rceil+\lfloor\log_kn\rfloor",
        {"a": torch.tensor([5, 6, 7]), "k": 5, "n": range(124, 127)},
        {"origin": 124},
        [r"a_n=2\lceil\log_kn\rceil", r"a_n=\lceil\log_kn\rceil+\lfloor\log_kn\rceil"],
    ),
    "a side as a function of the free indices": (
        r"x_iy_j-c=y_j\Big(x_i-\frac c{y_j}\Big)",
        {"x": Z, "y": draw(3), "c": 0.3, "left side": lambda i, j: Z[i - 1] * draw(3)[j - 1] - 0.3},
        {},
        [
            r"x_iy_j+c=y_j\Big(x_i+\frac c{y_j}\Big)",
            r"x_iy_j^2-c=y_j^2\Big(x_i-\frac c{y_j^2}\Big)",
        ],
    ),
    "a side as a function of one of the indices": (
        r"\sum_jx_iy_j=x_is",
        {
            "x": Z,
            "y": draw(3),
            "s": draw(3).sum(),
            "right side": lambda i: Z[i - 1] * draw(3).sum(),
        },
        {},
        [r"\sum_jx_i^2y_j=x_i^2s"],
    ),
    "Monte Carlo": (
        r"\mathrm{Var}(q\cdot k)=d_k",
        {
            "Var": samples(
                q=torch.randn(20000, 7, generator=torch.Generator().manual_seed(0)).sign(),
                k=torch.randn(20000, 7, generator=torch.Generator().manual_seed(1)),
            ),
            "d_k": 7,
        },
        {},
        [r"\mathrm{Var}(q\cdot k)=\sqrt{d_k}", r"\mathrm{Var}(q\cdot k)=d_k-1"],
    ),
}


@pytest.mark.parametrize("name", NOTATIONS)
def test_a_right_formula_is_read_and_its_wrong_versions_are_refused(name, capsys):
    tex, reading, options, wrong = NOTATIONS[name]
    reading = list(reading) if isinstance(reading, list) else reading
    record = check("eq:test", tex, reading, **options)
    assert record.read
    assert len(record.mutants) >= 2
    assert "read from the page" in capsys.readouterr().out
    assert wrong
    for text in wrong:
        with pytest.raises(VerificationError, match=REFUSED):
            check("eq:test", text, reading, **options)


# ----------------------------------------------------------------------------- the route by SymPy

LOGITS = {"L": lambda z, y: lse(z) - y @ z, "z": Z, "y": Y, "p": softmax(Z)}
DISPLAYED = r"L=\log\sum_je^{z_j}-\sum_jy_jz_j"


def routes(record):
    return [name for name, _ in record.routes]


@pytest.mark.parametrize(
    ("tex", "reading", "given"),
    [
        (r"\nabla_zL=p-y", LOGITS, DISPLAYED),
        (r"\frac{\partial L}{\partial z_i}=p_i-y_i", LOGITS, DISPLAYED),
        (
            r"\frac{\partial L}{\partial z_i}=p_i-y_i",
            LOGITS,
            r"L=-\sum_jy_j\log q_j,\quad q_i=\frac{e^{z_i}}{\sum_je^{z_j}}",
        ),
        (r"\nabla_z^2L=\operatorname{diag}(p)-p^\top p", LOGITS, DISPLAYED),
        (
            r"\frac{\partial p_j}{\partial z_i}=p_j\,(\delta_{ij}-p_i)",
            {"z": Z, "p": softmax},
            r"p_i=\frac{e^{z_i}}{\sum_je^{z_j}}",
        ),
        (
            r"g''(x)=\frac{2c}{x^3}+\frac1x",
            {"x": 0.7, "c": 0.3},
            r"g(x)=\frac cx+x\log x",
        ),
        (r"h'(x)=ce^{cx}", {"x": 0.7, "c": 0.3}, r"h(x)=e^{cx}"),
    ],
)
def test_sympy_differentiates_what_the_page_displays(tex, reading, given):
    record = check("eq:test", tex, reading, given=[given])
    assert routes(record) == ["autograd", "finite differences", "SymPy"]
    assert dict(record.routes)["SymPy"] < 1e-14
    with pytest.raises(VerificationError, match="differ by"):
        check("eq:test", tex.replace("=", "=-", 1), reading, given=[given])


def test_sympy_finds_a_display_that_is_not_the_function_of_the_reading():
    wrong = DISPLAYED.replace("-", "-2")
    with pytest.raises(VerificationError, match=r"by SymPy, .* is off by"):
        check("eq:test", r"\nabla_zL=p-y", LOGITS, given=[wrong])


def test_sympy_is_no_route_where_nothing_is_displayed_or_arrays_are_multiplied():
    record = check("eq:test", r"\nabla_zL=p-y", LOGITS)
    assert routes(record) == ["autograd", "finite differences"]
    products = r"L=\log\sum_je^{z_j}-zy^\top"
    record = check("eq:test", r"\nabla_zL=p-y", LOGITS, given=[products])
    assert routes(record) == ["autograd", "finite differences"]


@pytest.mark.parametrize("condition", [r"\rho=1", r"\lambda\ge1"])
def test_a_condition_on_a_parameter_that_the_formula_does_not_print_must_hold(condition):
    def reading(steps, gain):
        return {
            "M": lambda T: gain * T * (T + 1) / 2,  # the page prints M(T) for what depends on rho
            "epsilon": gain,
            "T": steps,
            "rho": 0.0,
            "lambda": 0.7,
        }

    readings = [reading(3, 0.3), reading(7, 0.2)]
    claim = r"M(T)=\frac{\epsilon\,T(T+1)}2\qquad(%s)"
    check("eq:square", claim % r"\rho=0", readings)
    with pytest.raises(VerificationError, match="hold nowhere"):
        check("eq:square", claim % condition, readings)
