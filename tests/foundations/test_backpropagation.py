"""The engine and its vector-Jacobian products, held to autograd and to finite differences."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import companion.foundations.backpropagation as bp
from companion.foundations.backpropagation import (
    Node,
    backward,
    checkpoint,
    gradcheck,
    numerical_vjp,
    topological_order,
    unbroadcast,
    value_and_gradients,
)
from companion.verify import count_flops, peak_bytes

B, N, D, H, K = 2, 3, 5, 7, 11
# Sums of a few dozen products of order 1 in float64, through a few layers.
EXACT = {"rtol": 1e-12, "atol": 1e-13}
F = torch.nn.functional


def draw(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


def positive(*shape: int, g: torch.Generator) -> Tensor:
    return 0.3 + torch.rand(*shape, generator=g, dtype=torch.float64)


def autograd_vjp(function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> list:
    leaves = [x.clone().requires_grad_() for x in inputs]
    return list(torch.autograd.grad(function(*leaves), leaves, grad))


# --- each rule against autograd --------------------------------------------------------------

IDS = torch.tensor([[1, 4, 1], [0, 4, 4]])
OPERATIONS: dict[str, tuple[Callable, Callable, list[tuple[int, ...]]]] = {
    "add": (lambda a, b: a + b, lambda a, b: a + b, [(N, D), (D,)]),
    "add a row and a column": (lambda a, b: a + b, lambda a, b: a + b, [(1, D), (N, 1)]),
    "subtract": (lambda a, b: a - b, lambda a, b: a - b, [(B, 1, D), (N, D)]),
    "multiply": (lambda a, b: a * b, lambda a, b: a * b, [(N, 1), (B, N, D)]),
    "divide": (lambda a, b: a / b, lambda a, b: a / b, [(D,), (N, D)]),
    "number on the left": (lambda a: 2.0 / (1 - a), lambda a: 2.0 / (1 - a), [(N, D)]),
    "negate": (lambda a: -a, lambda a: -a, [(N, D)]),
    "cube": (lambda a: a**3, lambda a: a**3, [(N, D)]),
    "power 0": (lambda a: a**0 + a, lambda a: a**0 + a, [(N, D)]),
    "matmul": (lambda a, b: a @ b, torch.matmul, [(N, D), (D, H)]),
    "batch @ matrix": (lambda a, b: a @ b, torch.matmul, [(B, N, D), (D, H)]),
    "matrix @ batch": (lambda a, b: a @ b, torch.matmul, [(N, D), (B, D, H)]),
    "batch @ batch": (lambda a, b: a @ b, torch.matmul, [(K, 1, N, D), (B, D, H)]),
    "relu": (Node.relu, torch.relu, [(N, D)]),
    "sigmoid": (Node.sigmoid, torch.sigmoid, [(N, D)]),
    "tanh": (Node.tanh, torch.tanh, [(N, D)]),
    "gelu": (Node.gelu, F.gelu, [(N, D)]),
    "silu": (Node.silu, F.silu, [(N, D)]),
    "exp": (Node.exp, torch.exp, [(N, D)]),
    "softmax": (Node.softmax, lambda a: a.softmax(-1), [(B, N, D)]),
    "log_softmax": (Node.log_softmax, lambda a: a.log_softmax(-1), [(B, N, D)]),
    "sum": (Node.sum, torch.sum, [(N, D)]),
    "sum of an axis": (lambda a: a.sum(-2), lambda a: a.sum(-2), [(B, N, D)]),
    "sum, axis kept": (
        lambda a: a.sum((0, 2), keepdim=True),
        lambda a: a.sum((0, 2), keepdim=True),
        [(B, N, D)],
    ),
    "sum of no axis": (lambda a: a.sum(()), lambda a: a.clone(), [(N, D)]),
    "mean": (Node.mean, torch.mean, [(N, D)]),
    "mean of axes": (lambda a: a.mean((0, -1)), lambda a: a.mean((0, -1)), [(B, N, D)]),
    "mean of no axis": (lambda a: a.mean(()), lambda a: a.clone(), [(N, D)]),
    "reshape": (lambda a: a.reshape(D, -1), lambda a: a.reshape(D, -1), [(B, N, D)]),
    "transpose": (lambda a: a.transpose(0, -1), lambda a: a.transpose(0, -1), [(B, N, D)]),
    "row": (lambda a: a[1], lambda a: a[1], [(N, D)]),
    "slice": (lambda a: a[:, 1:4:2], lambda a: a[:, 1:4:2], [(N, D)]),
    "ids twice": (lambda a: a[IDS], lambda a: a[IDS], [(D, H)]),
    "mixed index": (lambda a: a[1:, IDS[0]], lambda a: a[1:, IDS[0]], [(N, D)]),
    "mask": (
        lambda a: a[torch.tensor([True, False, True])],
        lambda a: a[torch.tensor([True, False, True])],
        [(N, D)],
    ),
    "new axis": (lambda a: a[:, None], lambda a: a[:, None], [(N, D)]),
    "embedding": (
        lambda e: e.embedding(IDS.to(e.value.device)),
        lambda e: F.embedding(IDS.to(e.device), e),
        [(D, H)],
    ),
    "a node used twice": (lambda a: a * a + a, lambda a: a * a + a, [(N, D)]),
    "a @ its transpose": (lambda a: a @ a.transpose(0, 1), lambda a: a @ a.T, [(N, D)]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_the_value_and_gradients_of_autograd(
    name: str, g: torch.Generator, device: torch.device
) -> None:
    ours, theirs, shapes = OPERATIONS[name]
    exact = {"rtol": 1e-4, "atol": 1e-5} if device.type == "mps" else EXACT

    def made_on_device(*shape: int) -> Tensor:
        # MPS has no float64.
        drawn = draw(*shape, g=g)
        return (drawn.float() if device.type == "mps" else drawn).to(device)

    inputs = [made_on_device(*shape) for shape in shapes]
    copies = [x.clone() for x in inputs]
    nodes = [Node(x) for x in inputs]
    output = ours(*nodes)
    expected = theirs(*inputs)
    torch.testing.assert_close(output.value, expected, **exact)
    grad = made_on_device(*expected.shape)
    grad_copy = grad.clone()
    made = backward(output, grad)
    for node, reference in zip(nodes, autograd_vjp(theirs, inputs, grad), strict=True):
        torch.testing.assert_close(made[node], reference, **exact)
        assert made[node].device.type == device.type
    assert torch.equal(grad, grad_copy)
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_passes_finite_differences(name: str, g: torch.Generator) -> None:
    ours, _, shapes = OPERATIONS[name]
    # Central differences are good to about 1e-10; the kink of relu is not within the step.
    error = gradcheck(ours, *(draw(*shape, g=g) for shape in shapes), generator=g)
    assert error < 1e-8


def test_logarithm_and_powers_of_positive_numbers(g: torch.Generator) -> None:
    x = positive(N, D, g=g)
    for ours, theirs in (
        (Node.log, torch.log),
        (lambda a: a**-0.5, lambda a: a**-0.5),
        (lambda a: a.log().exp(), lambda a: a.log().exp()),
    ):
        node = Node(x)
        grad = draw(N, D, g=g)
        torch.testing.assert_close(
            backward(ours(node), grad)[node], autograd_vjp(theirs, [x], grad)[0], **EXACT
        )


@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_from_logits(soft: bool, g: torch.Generator) -> None:
    z = draw(N, K, g=g)
    y = draw(N, K, g=g).softmax(-1) if soft else torch.tensor([3, 0, 10])
    node = Node(z)
    loss = node.cross_entropy(y)
    torch.testing.assert_close(loss.value, F.cross_entropy(z, y), **EXACT)
    # 3 times the loss, so that a forgotten upstream gradient shows.
    made = backward(3 * loss)[node]
    expected = autograd_vjp(lambda z: 3 * F.cross_entropy(z, y), [z], torch.ones_like(loss.value))
    torch.testing.assert_close(made, expected[0], **EXACT)


def test_ignored_targets_get_no_gradient(g: torch.Generator) -> None:
    node = Node(draw(N, K, g=g))
    made = backward(node.cross_entropy(torch.tensor([3, -100, 10])))[node]
    assert not made[1].any()
    assert made[0].any()


# --- a whole network, at every node ----------------------------------------------------------


def test_every_node_of_a_network_has_the_gradient_of_autograd(g: torch.Generator) -> None:
    """A small attention model with embeddings, reuse and broadcasting, node by node."""
    table, w, b, out = (draw(*s, g=g) for s in ((K, D), (D, D + 2), (D + 2,), (D + 2, K)))
    ids, targets = torch.tensor([1, 4, 1, 9, 0, 4]), torch.tensor([4, 1, 9, 0, 4, 2])

    def steps(e, w, b, out, ops):
        x = ops["embed"](e)
        h = ops["gelu"](x @ w + b)
        scores = (h @ ops["t"](h)) * 0.3
        mixed = ops["softmax"](scores) @ h + h
        centered = mixed - ops["mean"](mixed)
        normed = centered / (ops["mean"](centered * centered) + 1e-5) ** 0.5
        logits = ops["silu"](normed) @ out
        loss = ops["ce"](logits)
        return [x, h, scores, mixed, centered, normed, logits, loss]

    leaves = [Node(t) for t in (table, w, b, out)]
    ours = steps(
        *leaves,
        {
            "embed": lambda e: e.embedding(ids),
            "gelu": Node.gelu,
            "silu": Node.silu,
            "softmax": Node.softmax,
            "t": lambda h: h.transpose(0, 1),
            "mean": lambda h: h.mean(-1, keepdim=True),
            "ce": lambda z: z.cross_entropy(targets),
        },
    )
    theirs_leaves = [t.clone().requires_grad_() for t in (table, w, b, out)]
    theirs = steps(
        *theirs_leaves,
        {
            "embed": lambda e: F.embedding(ids, e),
            "gelu": F.gelu,
            "silu": F.silu,
            "softmax": lambda s: s.softmax(-1),
            "t": lambda h: h.T,
            "mean": lambda h: h.mean(-1, keepdim=True),
            "ce": lambda z: F.cross_entropy(z, targets),
        },
    )
    grads = backward(ours[-1])
    expected = torch.autograd.grad(theirs[-1], [*theirs_leaves, *theirs])
    for node, reference in zip([*leaves, *ours], expected, strict=True):
        torch.testing.assert_close(grads[node], reference, **EXACT)


@given(data=st.data(), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=60, deadline=None)
def test_random_graphs_have_the_gradients_of_autograd(data: st.DataObject, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    values = [draw(*shape, g=g) for shape in ((N, D), (1, D), (N, 1))]
    ours: list = [Node(v) for v in values]
    leaves = [v.clone().requires_grad_() for v in values]
    theirs: list[Tensor] = list(leaves)
    for _ in range(data.draw(st.integers(1, 12))):
        i, j = (data.draw(st.integers(0, len(ours) - 1)) for _ in range(2))
        kind = data.draw(st.sampled_from(["add", "sub", "mul", "tanh", "sigmoid", "gelu", "sum"]))
        if kind in ("tanh", "sigmoid"):
            ours.append(getattr(ours[i], kind)())
            theirs.append(getattr(theirs[i], kind)())
        elif kind == "gelu":
            ours.append(ours[i].gelu())
            theirs.append(F.gelu(theirs[i]))
        elif kind == "sum":
            ours.append(ours[i].sum(-1, keepdim=True).tanh())
            theirs.append(theirs[i].sum(-1, keepdim=True).tanh())
        else:
            combine = {
                "add": lambda a, b: a + b,
                "sub": lambda a, b: a - b,
                "mul": lambda a, b: (a * b) * 0.5,
            }[kind]
            ours.append(combine(ours[i], ours[j]))
            theirs.append(combine(theirs[i], theirs[j]))
    grads = backward(ours[-1].sum())
    expected = torch.autograd.grad(theirs[-1].sum(), leaves, allow_unused=True)
    for node, reference in zip(ours[:3], expected, strict=True):
        if reference is None:
            assert node not in grads
        else:
            # Twelve steps may square numbers a few times, so the scale is that of the gradient.
            bound = 1e-11 * (1 + float(reference.abs().max()))
            assert float((grads[node] - reference).abs().max()) <= bound


@given(
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=4),
    extra=st.lists(st.integers(1, 3), min_size=0, max_size=2),
    data=st.data(),
)
def test_unbroadcast_is_the_transpose_of_broadcasting(
    shape: list[int], extra: list[int], data: st.DataObject
) -> None:
    narrow = [1 if data.draw(st.booleans()) else size for size in shape]
    g = torch.Generator().manual_seed(0)
    x, y = draw(*narrow, g=g), draw(*extra, *shape, g=g)
    left = (x.expand((*extra, *shape)) * y).sum()
    right = (x * unbroadcast(y, shape=tuple(narrow))).sum()
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_index_backward_is_the_transpose_of_indexing(g: torch.Generator) -> None:
    x = draw(N, D, g=g)
    for index in ((slice(None), torch.tensor([4, 4, 1])), 2, (1, slice(0, 3)), x > 0):
        y = draw(*x[index].shape, g=g)
        back = bp.index_backward(y, index, shape=(N, D))
        torch.testing.assert_close((x[index] * y).sum(), (x * back).sum(), **EXACT)


def test_pure_rules_agree_with_autograd(g: torch.Generator) -> None:
    """The public functions by themselves, with the arguments in their documented order."""
    a, b, w = draw(B, N, D, g=g), positive(D, g=g), draw(D, H, g=g)
    grad = draw(B, N, H, g=g)
    dx, dw, db = bp.linear_backward(a, w, grad)
    expected = autograd_vjp(lambda x, w, c: x @ w + c, [a, w, draw(H, g=g)], grad)
    for made, reference in zip((dx, dw, db), expected, strict=True):
        torch.testing.assert_close(made, reference, **EXACT)
    for function, rule in (
        (torch.mul, bp.multiply_backward),
        (torch.div, bp.divide_backward),
    ):
        grad = draw(B, N, D, g=g)
        for made, reference in zip(
            rule(a, b, grad), autograd_vjp(function, [a, b], grad), strict=True
        ):
            torch.testing.assert_close(made, reference, **EXACT)
    made = bp.add_backward(grad, shapes=((B, N, D), (D,)))[1]
    torch.testing.assert_close(made, grad.sum((0, 1)), **EXACT)


def test_embedding_backward_is_the_one_hot_product(g: torch.Generator) -> None:
    grad = draw(*IDS.shape, H, g=g)
    one_hot = F.one_hot(IDS, D).double().reshape(-1, D)
    expected = one_hot.T @ grad.reshape(-1, H)
    torch.testing.assert_close(bp.embedding_backward(grad, IDS, rows=D), expected, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_long_sums_in_half_precision_do_not_stall(dtype: torch.dtype) -> None:
    """One and one more, summed in bfloat16, stays at 256; 4096 is exact in both dtypes."""
    count = 4096
    ids = torch.zeros(count, dtype=torch.long)
    ones = torch.ones(count, dtype=dtype)
    column = ones[:, None]
    made = [
        bp.index_backward(ones, ids, shape=(2,))[0],
        bp.embedding_backward(column, ids, rows=2)[0, 0],
        bp.unbroadcast(ones, shape=(1,))[0],
        bp.linear_backward(column, column[:1], column)[1][0, 0],
        bp.linear_backward(column, column[:1], column)[2][0],
    ]
    assert all(total.dtype == dtype and float(total) == count for total in made)


# --- the engine -------------------------------------------------------------------------------


def test_order_puts_parents_first_and_each_node_once(g: torch.Generator) -> None:
    x = Node(draw(N, D, g=g))
    y = x.tanh()
    z = (y * x + y) @ y.transpose(0, 1)
    order = topological_order(z)
    place = {node: i for i, node in enumerate(order)}
    assert len(place) == len(order) == 6
    assert all(place[p] < place[node] for node in order for p in node.parents)
    assert order[-1] is z


def test_graphs_may_be_deeper_than_the_stack() -> None:
    x = Node(torch.tensor(1.0, dtype=torch.float64))
    y = x
    for _ in range(20_011):
        y = y * 1.0001
    # d y / d x = 1.0001^20011; each factor rounds once.
    assert float(backward(y)[x]) == pytest.approx(1.0001**20_011, rel=1e-11)


def test_paths_are_counted_once_although_there_are_exponentially_many() -> None:
    x = Node(torch.tensor(1.0, dtype=torch.float64))
    y = x
    for _ in range(60):
        y = y + y
    assert float(backward(y)[x]) == 2.0**60


def test_gradients_are_linear_in_the_upstream_gradient(g: torch.Generator) -> None:
    x = Node(draw(N, D, g=g))
    y = (x.tanh() @ draw(D, H, g=g)).gelu()
    one, other = draw(N, H, g=g), draw(N, H, g=g)
    torch.testing.assert_close(
        backward(y, 2 * one - 3 * other)[x],
        2 * backward(y, one)[x] - 3 * backward(y, other)[x],
        **EXACT,
    )


def test_two_passes_over_one_graph_do_not_mix(g: torch.Generator) -> None:
    x = Node(draw(N, D, g=g))
    loss = (x * x).sum()
    first, second = backward(loss)[x], backward(loss)[x]
    assert torch.equal(first, second)
    torch.testing.assert_close(first, 2 * x.value, **EXACT)


def test_keep_inputs_returns_the_inputs_only(g: torch.Generator) -> None:
    x, w = Node(draw(N, D, g=g)), Node(draw(D, H, g=g))
    loss = (x @ w).tanh().sum()
    everything, leaves = backward(loss), backward(loss, keep="inputs")
    assert set(leaves) == {x, w}
    assert set(leaves) < set(everything)
    assert all(torch.equal(leaves[n], everything[n]) for n in leaves)


def test_constants_get_no_gradient_and_keep_no_past(g: torch.Generator) -> None:
    x, w = draw(N, D, g=g), Node(draw(D, H, g=g))
    constant = Node(x, needs_grad=False)
    past = constant.tanh()
    assert past.parents == ()
    grads = backward((past @ w).sum())
    assert constant not in grads
    assert past not in grads
    torch.testing.assert_close(grads[w], x.tanh().T @ torch.ones(N, H).double(), **EXACT)


def test_a_tensor_on_the_left_becomes_a_constant(g: torch.Generator) -> None:
    x, w = draw(N, D, g=g), Node(draw(D, H, g=g))
    out = x @ w
    assert isinstance(out, Node)
    torch.testing.assert_close(
        backward(out, torch.ones(N, H).double())[w], x.T @ torch.ones(N, H).double(), **EXACT
    )
    for made in (x[:, :1] * Node(x), x + Node(x), x - Node(x), x / Node(x)):
        assert isinstance(made, Node)


def test_autograd_records_nothing_inside(g: torch.Generator) -> None:
    x = draw(N, D, g=g).requires_grad_()
    node = Node(x)
    out = node.gelu().sum()
    assert not out.value.requires_grad
    assert not backward(out)[node].requires_grad


def test_value_and_gradients_fills_in_zeros(g: torch.Generator) -> None:
    a, b = draw(N, D, g=g), draw(H, g=g)
    value, (da, db) = value_and_gradients(lambda a, b: (a * a).sum(), a, b)
    torch.testing.assert_close(value, (a * a).sum(), **EXACT)
    torch.testing.assert_close(da, 2 * a, **EXACT)
    assert torch.equal(db, torch.zeros(H, dtype=torch.float64))


def test_forward_over_reverse_is_the_hessian_vector_product(g: torch.Generator) -> None:
    w, v, x = draw(D, H, g=g), draw(D, H, g=g), draw(N, D, g=g)

    def gradient(w: Tensor) -> Tensor:
        return value_and_gradients(lambda w: ((x @ w).tanh().gelu() ** 2).sum(), w)[1][0]

    ours = torch.func.jvp(gradient, (w,), (v,))[1]
    hessian = torch.autograd.functional.hessian(lambda w: (F.gelu((x @ w).tanh()) ** 2).sum(), w)
    torch.testing.assert_close(ours, torch.einsum("ijkl,kl->ij", hessian, v), **EXACT)


def test_backward_costs_twice_the_forward_pass() -> None:
    x, *weights = (torch.ones(a, b) for a, b in ((13, 3), (3, 5), (5, 7), (7, 2)))

    def network(*nodes: Node) -> Node:
        h = nodes[0]
        for w in nodes[1:]:
            h = (h @ w).relu()
        return h.sum()

    forward = count_flops(lambda: network(*(Node(t) for t in (x, *weights))))
    everything = count_flops(lambda: value_and_gradients(network, x, *weights))
    assert everything == 3 * forward
    data = Node(x, needs_grad=False)
    weights_only = count_flops(lambda: backward(network(data, *(Node(w) for w in weights))))
    assert weights_only == 3 * forward - 2 * 13 * 3 * 5


# --- checkpoints -------------------------------------------------------------------------------


def chain(x: Node, weights: list[Node], every: int | None) -> Node:
    def segment(h: Node, *ws: Node) -> Node:
        for w in ws:
            h = (h @ w).tanh()
        return h

    if every is None:
        return segment(x, *weights)
    for start in range(0, len(weights), every):
        x = checkpoint(segment, x, *weights[start : start + every])
    return x


@pytest.mark.parametrize("every", [1, 2, 5, 12, 17])
def test_checkpoints_change_no_gradient(every: int, g: torch.Generator) -> None:
    values = [draw(D, D, g=g) for _ in range(12)]
    x = Node(draw(N, D, g=g))
    grad = draw(N, D, g=g)
    ws = [Node(v) for v in values]
    plain, saved = (backward(chain(x, ws, e), grad) for e in (None, every))
    for node in (x, *ws):
        assert torch.equal(plain[node], saved[node])


def test_checkpoints_save_memory_and_cost_one_forward_pass(g: torch.Generator) -> None:
    n, d, layers = 101, 7, 36
    weights = [0.3 * draw(d, d, g=g) for _ in range(layers)]
    x, grad = draw(n, d, g=g), draw(n, d, g=g)

    def run(every: int | None) -> None:
        backward(chain(Node(x), [Node(w) for w in weights], every), grad, keep="inputs")

    forward = count_flops(
        lambda: chain(Node(x, needs_grad=False), [Node(w) for w in weights], None)
    )
    assert count_flops(run, None) == 3 * forward
    assert count_flops(run, 6) == 4 * forward
    plain, saved = peak_bytes(run, None), peak_bytes(run, 6)
    # 2 values a layer against one for each of 6 checkpoints and 2 for each layer of a segment.
    assert saved < 0.35 * plain
    assert saved < min(peak_bytes(run, every) for every in (1, 2, 18, 36))


def test_checkpoint_refuses_hidden_inputs(g: torch.Generator) -> None:
    x, w = Node(draw(N, D, g=g)), Node(draw(D, H, g=g))
    with pytest.raises(ValueError, match="not among the inputs: pass it"):
        checkpoint(lambda h: h @ w, x)
    constant = draw(D, H, g=g)
    out = checkpoint(lambda h: (h @ constant).tanh(), x)
    expected = autograd_vjp(lambda h: (h @ constant).tanh(), [x.value], torch.ones(N, H).double())
    torch.testing.assert_close(backward(out, torch.ones(N, H).double())[x], expected[0], **EXACT)


def test_checkpoint_gives_none_to_unused_and_constant_inputs(g: torch.Generator) -> None:
    x, unused = Node(draw(N, D, g=g)), Node(draw(H, g=g))
    constant = Node(draw(D, g=g), needs_grad=False)
    grads = backward(checkpoint(lambda a, b, c: (a * c).sum(), x, unused, constant))
    assert unused not in grads
    assert constant not in grads
    torch.testing.assert_close(grads[x], constant.value.expand(N, D), **EXACT)


# --- finite differences ------------------------------------------------------------------------


def test_numerical_vjp_of_a_linear_map_is_exact(g: torch.Generator) -> None:
    x, w, grad = draw(N, D, g=g), draw(D, H, g=g), draw(N, H, g=g)
    made = numerical_vjp(lambda x: x @ w, x, grad)
    # Cancellation: 1e-16 over a step of 6e-6, times sums of about ten terms.
    torch.testing.assert_close(made, grad @ w.T, rtol=1e-8, atol=1e-9)
    assert numerical_vjp(lambda x: x, torch.empty(0).double(), torch.empty(0).double()).numel() == 0


def test_gradcheck_finds_a_wrong_gradient(g: torch.Generator) -> None:
    x = draw(N, D, g=g)

    def wrong(node: Node) -> Node:
        # tanh with the derivative of the identity.
        made = node + (node.value.tanh() - node.value)
        assert made.operation == "add"
        return made

    # The constant moves with x when the function is evaluated elsewhere, so the slopes differ.
    with pytest.raises(ArithmeticError, match=r"gradient of input 0 at \(\d, \d\): the engine"):
        gradcheck(wrong, x, generator=g)


def test_gradcheck_accepts_an_error_as_large_as_the_tolerance(g: torch.Generator) -> None:
    # A doubling at 0, at a step that is a power of 2, is exact on both sides.
    x = torch.zeros(5, dtype=torch.float64)
    assert gradcheck(lambda a: a + a, x, generator=g, step=2.0**-17, tolerance=0.0) == 0.0


def test_gradcheck_counts_inputs_that_do_not_matter(g: torch.Generator) -> None:
    x, unused = draw(N, D, g=g), draw(H, g=g)
    assert gradcheck(lambda a, b: a.tanh(), x, unused, generator=g) < 1e-8


# --- precision, devices, errors ----------------------------------------------------------------

WITH_BACKWARD = ["relu", "sigmoid", "tanh", "gelu", "silu"]


def test_activations_by_name_are_their_formulas() -> None:
    x = torch.linspace(-4, 4, 17, dtype=torch.float64)
    inner = (2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)
    formulas = {
        "gelu": x / 2 * (1 + torch.special.erf(x / 2**0.5)),
        "gelu_tanh": x / 2 * (1 + inner.tanh()),
        "relu": x * (x > 0),
        "sigmoid": 1 / (1 + (-x).exp()),
        "silu": x / (1 + (-x).exp()),
        "tanh": 1 - 2 / ((2 * x).exp() + 1),
    }
    assert formulas.keys() == bp.ACTIVATIONS.keys()
    for name, want in formulas.items():
        torch.testing.assert_close(bp.ACTIVATIONS[name](x), want, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", WITH_BACKWARD)
def test_half_precision_stays_finite_and_keeps_its_dtype(name: str, dtype: torch.dtype) -> None:
    x = torch.linspace(-30, 30, 61).to(dtype)
    node = Node(x)
    made = backward(getattr(node, name)(), torch.ones_like(x))[node]
    assert made.dtype == dtype
    assert torch.isfinite(made).all()
    wide_node = Node(x.double())
    exact = backward(getattr(wide_node, name)(), torch.ones(61).double())[wide_node]
    # One rounding of the output, and one of the slope.
    tolerance = 3 * torch.finfo(dtype).eps
    torch.testing.assert_close(made.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", WITH_BACKWARD)
def test_slopes_keep_their_documented_ranges(name: str) -> None:
    x = torch.linspace(-40, 40, 80_001, dtype=torch.float64)
    node = Node(x)
    slope = backward(getattr(node, name)(), torch.ones_like(x))[node]
    low, high = {
        "relu": (0, 1),
        "sigmoid": (0, 0.25),
        "tanh": (0, 1),
        "gelu": (-0.129, 1.129),
        "silu": (-0.0999, 1.0999),
    }[name]
    assert low <= float(slope.min())
    assert float(slope.max()) <= high
    # The ranges are tight to three digits.
    assert float(slope.max()) >= high - 1e-3
    assert float(slope.min()) <= low + 1e-3


def test_gelu_keeps_its_digits_far_to_the_left() -> None:
    x = torch.tensor([-12.0], dtype=torch.float64)
    # Phi(-12) = phi(12) / 12 (1 - 1/144 + 3/144^2 - 15/144^3 + ...), DLMF 7.12.1.
    density = math.exp(-72) / math.sqrt(2 * math.pi)
    series = density / 12 * (1 - 1 / 144 + 3 / 144**2 - 15 / 144**3 + 105 / 144**4)
    made = bp.gelu_backward(x, torch.ones_like(x))
    assert float(made) == pytest.approx(series - 12 * density, rel=1e-9)


def test_everything_runs_on_meta() -> None:
    def m(*shape: int) -> Tensor:
        return torch.empty(*shape, device="meta")

    ids = torch.zeros(N, dtype=torch.int64, device="meta")
    leaves = [Node(m(K, D)), Node(m(D, H)), Node(m(H)), Node(m(H, K))]
    e, w, b, out = leaves
    h = (e.embedding(ids) @ w + b).gelu().silu().tanh().sigmoid().relu()
    h = checkpoint(lambda h: (h * 2.0 - 1.0) / (h**2 + 1.0), h)
    h = h.softmax().log_softmax().exp().log()[:, :H].reshape(N, H)
    h = h.transpose(0, 1).transpose(0, 1) + h.mean(-1, keepdim=True) + h.sum()
    grads = backward((h @ out).cross_entropy(ids))
    for leaf in leaves:
        assert grads[leaf].is_meta
        assert tuple(grads[leaf].shape) == leaf.shape


@pytest.mark.usefixtures("own_checks")
def test_errors_name_what_is_wrong() -> None:
    x = Node(torch.ones(N, D))
    with pytest.raises(ValueError, match=r"shape \(3, 5\), not that of a scalar: pass its"):
        backward(x.tanh())
    with pytest.raises(ValueError, match=r"made from constants only"):
        backward(Node(torch.tensor(1.0), needs_grad=False))
    with pytest.raises(ValueError, match=r"keep must be 'all' or 'inputs', got 'none'"):
        backward(x.sum(), keep="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"only floating tensors have gradients, got torch.int64"):
        Node(torch.tensor([1]))
    with pytest.raises(ValueError, match=r"inner sizes differ in \(3, 5\) @ \(7, 5\)"):
        x @ torch.ones(H, D)
    with pytest.raises(ValueError, match=r"two axes on each side, got \(3, 5\) @ \(5,\)"):
        x @ torch.ones(D)
    with pytest.raises(ValueError, match=r"dtypes torch.float32 and torch.float64"):
        x + torch.ones(D).double()
    with pytest.raises(TypeError, match="does not combine with str"):
        x + "one"
    with pytest.raises(ValueError, match=r"dim 2 is out of range for 2 axes"):
        x.sum(2)
    with pytest.raises(ValueError, match=r"dim \(0, -2\) names an axis twice"):
        x.mean((0, -2))
    with pytest.raises(ValueError, match=r"two axes, got shape \(5,\)"):
        Node(torch.ones(D)).embedding(IDS)
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 3\), got 4"):
        x.embedding(IDS)


def test_a_value_changed_in_place_is_noticed() -> None:
    weight = torch.ones(D)
    node = Node(weight)
    loss = (node * node).sum()
    weight.sub_(0.1)
    with pytest.raises(RuntimeError, match="changed in place after it was used"):
        backward(loss)


def test_a_constant_changed_in_place_is_noticed() -> None:
    """The gradient of the weights reads the data, which needs no gradient itself."""
    data = torch.ones(N, D)
    loss = (Node(data, needs_grad=False) @ Node(torch.ones(D, H))).sum()
    data.mul_(2.0)
    with pytest.raises(RuntimeError, match="changed in place after it was used"):
        backward(loss)


def test_inference_tensors_pass() -> None:
    with torch.inference_mode():
        node = Node(torch.ones(D))
        made = backward((node * node).sum())[node]
    assert torch.equal(made, torch.full((D,), 2.0))


@pytest.mark.usefixtures("own_checks")
def test_rules_name_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 5\) does not broadcast to \(3, 5\)"):
        unbroadcast(torch.ones(N, D), shape=(B, D))
    with pytest.raises(ValueError, match=r"shape \(3, 5\) does not broadcast to \(5,\)"):
        unbroadcast(torch.ones(D), shape=(N, D))
    with pytest.raises(ValueError, match=r"grad must have shape \(3, 7\), got \(3, 5\)"):
        bp.linear_backward(torch.ones(N, D), torch.ones(D, H), torch.ones(N, D))
    with pytest.raises(ValueError, match=r"weight must have shape \(5, \*\), got \(7, 5\)"):
        bp.linear_backward(torch.ones(N, D), torch.ones(H, D), torch.ones(N, H))
    with pytest.raises(ValueError, match=r"x must be floating, got torch.int64"):
        bp.linear_backward(torch.ones(N, D).long(), torch.ones(D, H), torch.ones(N, H))
    with pytest.raises(ValueError, match=r"grad must have shape \(3, 7\), got \(7, 3\)"):
        bp.matmul_backward(torch.ones(N, D), torch.ones(D, H), torch.ones(H, N))
    with pytest.raises(ValueError, match=r"out and grad must have the same shape"):
        bp.tanh_backward(torch.ones(N), torch.ones(D))
    with pytest.raises(ValueError, match=r"grad must have shape \(3,\), got \(5,\)"):
        bp.sum_backward(torch.ones(D), shape=(N, D), dim=1)
    with pytest.raises(ValueError, match=r"\(3, 5\) does not reshape to \(7,\)"):
        bp.reshape_backward(torch.ones(N, D), shape=(H,))
    with pytest.raises(ValueError, match=r"axes 0 and 2 are out of range for 2 axes"):
        bp.transpose_backward(torch.ones(N, D), dim0=0, dim1=2)
    with pytest.raises(ValueError, match=r"the selection must have the same shape"):
        bp.index_backward(torch.ones(N), slice(0, 2), shape=(D,))
    with pytest.raises(ValueError, match=r"grad must have shape \(2, 3, \*\), got \(3, 2, 7\)"):
        bp.embedding_backward(torch.ones(N, B, H), IDS, rows=D)
    with pytest.raises(ValueError, match=r"rows\)|lie in \[0, 3\), got 4"):
        bp.embedding_backward(torch.ones(B, N, H), IDS, rows=N)
    with pytest.raises(ValueError, match="needs an axis of classes"):
        bp.log_softmax_backward(torch.tensor(0.0), torch.tensor(1.0))
    with pytest.raises(ValueError, match="x and grad must have the same shape"):
        bp.power_backward(torch.ones(N), torch.ones(D), exponent=2)
    with pytest.raises(ValueError, match=r"need float64, got torch.float32"):
        numerical_vjp(lambda x: x, torch.ones(N), torch.ones(N))
    with pytest.raises(ValueError, match=r"step must lie in \(0.0"):
        numerical_vjp(lambda x: x, torch.ones(N).double(), torch.ones(N).double(), step=0.0)


def test_public_rules_change_no_input(g: torch.Generator) -> None:
    a, grad = draw(N, D, g=g), draw(N, D, g=g)
    copies = a.clone(), grad.clone()
    for name in ("relu", "sigmoid", "tanh", "gelu", "silu", "exp", "log", "log_softmax"):
        getattr(bp, f"{name}_backward")(a, grad)
    bp.multiply_backward(a, a, grad)
    bp.divide_backward(a, a, grad)
    bp.power_backward(a, grad, exponent=3)
    bp.matmul_backward(a, draw(D, H, g=g), draw(N, H, g=g))
    bp.index_backward(grad, slice(None), shape=(N, D))
    assert torch.equal(a, copies[0])
    assert torch.equal(grad, copies[1])
