"""Without values: all tensors run on the meta device; half precision is widened."""

import torch
from torch import Tensor

from companion.frontiers import reasoning as re


def test_all_of_it_runs_on_meta() -> None:
    row = torch.empty(5, 3, device="meta")
    whole = torch.empty(5, 3, dtype=torch.long, device="meta")
    table = torch.empty(2, 3, 4, device="meta")
    flag = torch.empty(5, dtype=torch.bool, device="meta")
    diagram = re.compile_formula(re.parse("a & (b | c)"))
    made: list[Tensor] = [
        *(f(row, row, kind="godel") for f in (re.t_norm, re.t_conorm, re.residuum)),
        re.wmc(diagram, row),
        re.log_wmc(diagram, row, row),
        re.semantic_loss(row, diagram),
        *re.marginalize(row, row),
        re.chain_success(row, steps=3),
        re.expected_steps(row, steps=3, feedback="outcome"),
        re.plurality_credit(whole, whole[:, 0], none=0),
        re.majority_accuracy(row, n=5),
        re.pass_at_k(whole, whole, k=2),
        re.best_of_n_success(row, n=3, t=0.9, f=0.1),
        re.verifier_ceiling(row, t=0.9, f=0.1),
        *re.verifier_rates(flag, flag),
        re.parity_text(whole, way="beside")[0],
        re.observed(table),
        re.backdoor(table),
    ]
    assert all(tensor.is_meta for tensor in made)


def test_half_precision_is_widened() -> None:
    g = torch.Generator().manual_seed(0)
    diagram = re.compile_formula(re.exactly_one([re.variable(f"x{i}") for i in range(30)]))
    z = (8 * torch.randn(7, 30, generator=g)).bfloat16()
    found = re.semantic_loss(z, diagram)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, re.semantic_loss(z.float(), diagram))
    assert re.marginalize(z, z).log_prob.dtype == torch.float32
    p = torch.rand(7, 30, generator=g).bfloat16()
    torch.testing.assert_close(re.wmc(diagram, p), re.wmc(diagram, p.float()))
    weights = torch.nn.functional.logsigmoid(z)
    counted = re.log_wmc(diagram, weights, weights)
    torch.testing.assert_close(counted, re.log_wmc(diagram, weights.float(), weights.float()))
    table = torch.rand(2, 3, 4, generator=g).bfloat16()
    torch.testing.assert_close(re.backdoor(table), re.backdoor(table.float()))
    torch.testing.assert_close(re.observed(table), re.observed(table.float()))


def test_inputs_stay_as_they_were() -> None:
    g = torch.Generator().manual_seed(0)
    p = torch.rand(5, 3, generator=g)
    before = p.clone()
    diagram = re.compile_formula(re.parse("a & (b | c)"))
    re.wmc(diagram, p)
    re.semantic_loss(p, diagram)
    re.best_of_n_success(p, n=3, t=0.9, f=0.1)
    re.marginalize(p, p)
    assert torch.equal(p, before)
