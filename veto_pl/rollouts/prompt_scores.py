"""What a server is asked about a text, how its answer is read, and whether it reads the same ids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from veto_pl.core.scores import TopKScores
from veto_pl.exceptions import ConfigurationError
from veto_pl.offline.fingerprint import PROBES
from veto_pl.servers.endpoint import Endpoint, NoAnswerError, Reply, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST = -9999.0
"""What stands for a probability of 0 in an answer."""
SMALLEST_TAIL = 1e-7
"""Of the probability of all other ids: below it, float32 does not know the rest of a sum of likelier ones."""


def request_for(model: str, prompt: Sequence[int] | str, k: int) -> Request:
    """Return the request for the log-probabilities of a text's tokens; `prompt` is ids, or a text to be tokenised."""
    return {
        "model": model,
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "prompt_logprobs": k,
        "max_tokens": 1,  # servers want to write something
        "temperature": 1.0,
        "add_special_tokens": False,
        "return_token_ids": True,
    }


def scores_of(reply: Reply, ids: Sequence[int], k: int, vocabulary: int) -> TopKScores | None:
    """Read the scores of the last tokens of a text.

    Args:
        reply: to `request_for`.
        ids: n tokens, the last of the text.
        k: likeliest ids.
        vocabulary: how many ids there are.

    Returns:
        The scores, [n]; None where an id beyond the vocabulary is among the likeliest, which a padding row of the
        teacher's head can be.

    Raises:
        ConfigurationError: the server has not answered with what was asked for.
    """
    told = _told(reply)[-len(ids) :]
    if len(told) < len(ids) or not all(map(_holds, told, ids)):
        raise ConfigurationError(
            "The teacher's server has not given `prompt_logprobs` of every token of the text, with the token's own. "
            "Use vLLM, or a server that does so as well."
        )
    kept, logp, sampled = [], [], []
    for token, at in zip(ids, told, strict=True):
        likeliest = sorted(((float(one["logprob"]), int(name)) for name, one in at.items()), reverse=True)[:k]
        own = float(at[str(token)]["logprob"])
        kept.append([name for _, name in likeliest])
        logp.append([value for value, _ in likeliest] + [_tail(likeliest, own, token)])
        sampled.append(own)
    if any(len(names) < k or max(names) >= vocabulary for names in kept):
        return None
    outcomes = torch.tensor(logp, dtype=torch.float64).log_softmax(-1).float()
    return TopKScores(torch.tensor(kept), outcomes, sampled_logp=torch.tensor(sampled).clamp_min(LEAST))


def check_server(
    endpoint: Endpoint, model: str, k: int, tokenizer: PreTrainedTokenizerBase, row: Sequence[int]
) -> NoAnswerError | None:
    """Compare both sides before anything is learned: how texts become ids, and what k is allowed.

    Args:
        endpoint: the server.
        model: the name of the teacher there.
        k: likeliest ids.
        tokenizer: of the run.
        row: ids of a further text, such as one of the run.

    Returns:
        Why the server has not answered; None where it has.

    Raises:
        ConfigurationError: the server reads other ids, has no such log-probabilities, or refuses k.
    """
    texts = [*PROBES, tokenizer.decode(row)]
    ours = {text: ids for text in texts if (ids := tokenizer(text, add_special_tokens=False)["input_ids"])}
    replies = endpoint.ask_all("/completions", [request_for(model, text, k) for text in ours], len(ours))
    for (text, ids), reply in zip(ours.items(), replies, strict=True):
        if isinstance(reply, NoAnswerError):
            return reply
        theirs = _choice(reply).get("prompt_token_ids")
        if theirs is None or list(theirs) != list(ids):
            raise ConfigurationError(
                f"The teacher at {endpoint.base_url} reads other ids than this run: of {text!r:.80} it makes "
                f"{_shown(theirs)}, and the run's tokenizer {_shown(ids)}. Take a teacher of the same family, and "
                "serve it with its own tokenizer (vLLM 0.32 or later)."
            )
        _check_probabilities(endpoint, _told(reply))
    return None


def _check_probabilities(endpoint: Endpoint, told: Sequence[Any]) -> None:
    for at in told:
        sums = sum(math.exp(float(one["logprob"])) for one in at.values()) if isinstance(at, Mapping) else 0.0
        if not 0 <= sums < 1.01:
            raise ConfigurationError(
                f"The teacher at {endpoint.base_url} gives ids probabilities that sum to {sums:.4g}. It has to be "
                "served with log-probabilities (vLLM: `--logprobs-mode raw_logprobs`, the default)."
            )


def _holds(at: Any, token: int) -> bool:
    return isinstance(at, Mapping) and str(token) in at


def _told(reply: Reply) -> list[Any]:
    told = _choice(reply).get("prompt_logprobs")
    return told if isinstance(told, list) else []


def _choice(reply: Reply) -> Mapping[str, Any]:
    choices = reply.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}


def _tail(likeliest: Sequence[tuple[float, int]], own: float, token: int) -> float:
    """Return the log-probability of all ids that are not among the likeliest, the token's own at least."""
    rest = 1 - math.fsum(math.exp(value) for value, _ in likeliest)
    known = 0.0 if token in (name for _, name in likeliest) else math.exp(own)
    return math.log(max(rest, known, SMALLEST_TAIL))


def _shown(ids: Any) -> str:
    return "no ids" if ids is None else f"{list(ids)[:8]}{'...' if len(ids) > 8 else ''}"
