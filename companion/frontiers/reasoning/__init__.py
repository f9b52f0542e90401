r"""From degrees of truth to chains of thought: what steps, votes, verifiers and search can do.

* **Logic**: :func:`t_norm`, :func:`t_conorm`, :func:`residuum`; formulas by :func:`parse`,
  :func:`variable`, :func:`exactly_one`, :func:`at_most_one`, :class:`Formula`; compiled by
  :func:`compile_formula` to a :class:`Diagram`, and then :func:`wmc`, :func:`log_wmc`,
  :func:`semantic_loss`.
* **Chains**: :func:`marginalize`, :func:`chain_success`, :func:`expected_steps`.
* **Votes and verifiers**: :func:`vote_shares`, :func:`plurality_credit`, :func:`majority_accuracy`,
  :func:`plurality_accuracy`, :func:`consensus_at_k`, :func:`pass_at_k`,
  :func:`best_of_n_success`, :func:`verifier_ceiling`, :func:`verifier_rates`.
* **Search**: :func:`state_beam_search`, :func:`mcts`, :func:`uct_score`, :class:`SearchResult`.
* **Problems with exact checkers**: :func:`addition`, :func:`parity`, :func:`parity_text`,
  :func:`graph_path`, :func:`syllogism`, :func:`countdown`, :func:`countdown_moves`,
  :class:`Problem`.
* **Tools**: :func:`calculate`, :func:`read_number`, :func:`same_number`, :class:`Calculator`.
* **Causes**: :func:`observed`, :func:`backdoor`.

Book: :doc:`/book/frontiers/reasoning`.
"""

from companion.frontiers.reasoning._causal import backdoor, observed
from companion.frontiers.reasoning._chains import (
    Marginal,
    chain_success,
    expected_steps,
    marginalize,
)
from companion.frontiers.reasoning._exact import calculate, read_number, same_number
from companion.frontiers.reasoning._formula import (
    Formula,
    at_most_one,
    exactly_one,
    parse,
    variable,
)
from companion.frontiers.reasoning._search import SearchResult, mcts, state_beam_search, uct_score
from companion.frontiers.reasoning._tasks import (
    Problem,
    addition,
    countdown,
    countdown_moves,
    graph_path,
    parity,
    parity_text,
    syllogism,
)
from companion.frontiers.reasoning._tnorms import TNorm, residuum, t_conorm, t_norm
from companion.frontiers.reasoning._tools import Calculator
from companion.frontiers.reasoning._votes import (
    best_of_n_success,
    consensus_at_k,
    majority_accuracy,
    pass_at_k,
    plurality_accuracy,
    plurality_credit,
    verifier_ceiling,
    verifier_rates,
    vote_shares,
)
from companion.frontiers.reasoning._wmc import (
    Diagram,
    compile_formula,
    log_wmc,
    semantic_loss,
    wmc,
)

__all__ = [
    "Calculator",
    "Diagram",
    "Formula",
    "Marginal",
    "Problem",
    "SearchResult",
    "TNorm",
    "addition",
    "at_most_one",
    "backdoor",
    "best_of_n_success",
    "calculate",
    "chain_success",
    "compile_formula",
    "consensus_at_k",
    "countdown",
    "countdown_moves",
    "exactly_one",
    "expected_steps",
    "graph_path",
    "log_wmc",
    "majority_accuracy",
    "marginalize",
    "mcts",
    "observed",
    "parity",
    "parity_text",
    "parse",
    "pass_at_k",
    "plurality_accuracy",
    "plurality_credit",
    "read_number",
    "residuum",
    "same_number",
    "semantic_loss",
    "state_beam_search",
    "syllogism",
    "t_conorm",
    "t_norm",
    "uct_score",
    "variable",
    "verifier_ceiling",
    "verifier_rates",
    "vote_shares",
    "wmc",
]
