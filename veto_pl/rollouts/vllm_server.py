"""vLLM on other devices as the engine of a rollout, behind its server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch.distributed as dist

from veto_pl.core.bounds import Count, CountFromZero, Positive
from veto_pl.core.extras import require_extra
from veto_pl.core.ranks import rank_and_size
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.rollouts.vllm_engine import VllmEngine
from veto_pl.rollouts.vllm_process import state_of
from veto_pl.rollouts.vllm_transfer import Link, by_folder, by_nccl
from veto_pl.seams import LanguageModel, Models, Step
from veto_pl.servers.endpoint import Endpoint, NoAnswerError

LARGEST_REPLY = 2**28
"""Bytes of an answer: about 100 for each token."""
MOST_PADDING = 1024
"""Ids that vLLM can ban in a request."""
NEVER = -100.0
"""Is added to the logit of a banned id, the least that the server takes."""


@dataclass(frozen=True, kw_only=True)
class VllmServer(VllmEngine):
    """vLLM behind its own server, on devices that training does not use.

    Each rank sends its own prompts. Before a rollout, weights that have changed go to the server while it pauses: by
    vLLM's weight transfer over NCCL (`nccl`), or through a folder that both sides see (`folder`). The gap to training's
    arithmetic is measured and corrected for as with `Vllm`. Start the server with the student's model, with
    `VLLM_SERVER_DEV_MODE=1`, which opens the routes that weights need, and with `--logprobs-mode processed_logprobs`;
    for `nccl` also `--weight-transfer-config '{"backend": "nccl"}'`. Those routes have no key: keep it from others.

    Args:
        server: address that stands before `/completions`, such as `http://localhost:8000/v1`.
        model: the name that the server knows the student by.
        transfer: how weights get there.
        folder: for `folder`; weights are written anew for each push.
        server_ranks: devices of the server, for `nccl`.
        host: where the server finds the first rank of the training, for `nccl`.
        port: of that rank, for `nccl`.
        timeout: seconds of one request, weights included.
        retries: further attempts after a failure that may pass.
        concurrency: requests of a rank that are under way at a time.
        largest_gap: as in `Vllm`.
    """

    server: str
    model: str
    transfer: Literal["nccl", "folder"] = "nccl"
    folder: str | None = None
    server_ranks: Count = 1
    host: str = "localhost"
    port: Count = 29600
    timeout: Positive = 600.0
    retries: CountFromZero = 2
    concurrency: Count = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require_extra("openai", extra="served", needed_by="`VllmServer`")
        self._endpoint()  # refuses an address that is none
        if self.transfer == "folder" and self.folder is None:
            raise ConfigurationError("`VllmServer.transfer: folder` needs a `folder` that training and server see.")

    @classmethod
    def examples(cls) -> tuple["VllmServer", ...]:
        return ()

    def answers(
        self,
        texts: Sequence[list[int]],
        settings: Sequence[dict[str, Any]],
        model: LanguageModel,
        models: Models,
        step: Step,
    ) -> list[Any]:
        """Give the server the weights where they have changed, and let it complete the texts."""
        self._push(model, step)
        shared = {"model": self.model, "return_token_ids": True, "logit_bias": _banned(model)}
        bodies = [shared | {"prompt": ids} | how for ids, how in zip(texts, settings, strict=True)]
        replies = self._endpoint().ask_all("/completions", bodies, self.concurrency)
        if lost := [reply for reply in replies if isinstance(reply, NoAnswerError)]:
            raise DataError(
                f"The server of `VllmServer` at {self.server} left {len(lost)} of {len(replies)} prompts unanswered "
                f"({lost[0]}). See whether it runs, raise `timeout` or `retries`, and go on from a checkpoint."
            )
        return [_answer(reply) for reply in replies if isinstance(reply, Mapping)]

    def _push(self, model: LanguageModel, step: Step) -> None:
        """Give the server the weights if they may have changed. Collective."""
        state, known = state_of(model, step), _pushed.setdefault(model, {})
        if known.get(self) == state:
            return
        link = Link(self._endpoint(), rank_and_size()[0])
        if self.transfer == "folder":
            by_folder(link, model, str(self.folder))
        else:
            by_nccl(link, model, self.host, self.port, 1 + self.server_ranks)
        if rank_and_size()[1] > 1:
            dist.barrier()  # nobody samples from weights that are half there
        known[self] = state

    def _endpoint(self) -> Endpoint:
        return Endpoint(self.server, None, self.timeout, self.retries, "server of `VllmServer`", LARGEST_REPLY)


_pushed: WeakKeyDictionary[LanguageModel, dict[VllmServer, tuple[int, int]]] = WeakKeyDictionary()


def _banned(model: LanguageModel) -> dict[str, float] | None:
    """Return the bias that bans the head's padding rows, which the server knows."""
    padding = range(model.vocab_size, model.head_rows)
    if len(padding) > MOST_PADDING:
        raise ConfigurationError(
            f"`VllmServer` can ban {MOST_PADDING} ids in a request, but the head has {len(padding)} rows without a "
            "token. Use the engine `Vllm`, which leaves them out."
        )
    return {str(i): NEVER for i in padding} or None


def _answer(reply: Mapping[str, Any]) -> Any:
    """Return a reply in the shape of the answers that vLLM gives in a process."""
    return SimpleNamespace(outputs=[_output(place, choice) for place, choice in enumerate(reply.get("choices", []))])


def _output(place: int, choice: Mapping[str, Any]) -> Any:
    ids, told = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if ids is None or told is None or len(ids) != len(told):
        raise ConfigurationError(
            "The server of `VllmServer` has not given `token_ids` with a log-probability each. It has to be vLLM 0.32 "
            "or later."
        )
    logprobs = [{token: SimpleNamespace(logprob=value)} for token, value in zip(ids, told, strict=True)]
    why = {name: choice.get(name) for name in ("finish_reason", "stop_reason")}
    return SimpleNamespace(index=place, token_ids=ids, logprobs=logprobs, **why)
