"""A running vLLM in this process: how it starts on the device of its rank, and how weights get into it."""

from __future__ import annotations

import importlib
import os
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from veto_pl.core.ranks import rank_and_size
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.merging import plain_config, whole_weights
from veto_pl.models.sharding import weights_version
from veto_pl.seams import LanguageModel, Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRIED = (0, 32)
"""The version that this was tried with, as pyproject.toml names it."""


class RunningEngine:
    """A running engine, and the state of the weights that it was given last.

    Args:
        engine: vLLM's `LLM`.
        group: ranks that share it.
        sleeps: whether it gives its memory back between rollouts.
    """

    def __init__(self, engine: Any, group: int = 1, *, sleeps: bool = False) -> None:
        self.engine, self.group, self.sleeps = engine, group, sleeps
        self.pushed: tuple[int, int] | None = None

    @contextmanager
    def awake(self, model: LanguageModel, step: Step) -> Iterator[RunningEngine]:
        """Hold weights and cache in memory for a rollout; an engine that sleeps gets its weights before its cache.

        Collective where the model is sharded: call it on every rank.
        """
        if self.sleeps:
            self.engine.wake_up(tags=["weights"])
            self.pushed = None  # they were thrown away
        self._push(model, step)
        if self.sleeps:
            self.engine.wake_up(tags=["kv_cache"])
        yield self
        if self.sleeps:
            self.engine.sleep(level=2)

    def complete(self, prompts: Sequence[Any], parameters: Sequence[Any]) -> list[Any]:
        """Return vLLM's answers in the order of the prompts. Collective where ranks share the engine."""
        if self.group == 1:
            return list(self.engine.generate(list(prompts), list(parameters), use_tqdm=False)) if prompts else []
        rank, ranks = rank_and_size()
        everybody: list[Any] = [None] * ranks
        dist.all_gather_object(everybody, (list(prompts), list(parameters)))
        first = rank // self.group * self.group
        ours = everybody[first : first + self.group]
        asked = [[one for requests in ours for one in requests[kind]] for kind in (0, 1)]
        before = sum(len(requests[0]) for requests in ours[: rank - first])
        answers = self.engine.generate(*asked, use_tqdm=False) if asked[0] else []
        return list(answers[before : before + len(prompts)])

    def _push(self, model: LanguageModel, step: Step) -> None:
        """Give the engine the weights if they may have changed: after an optimizer step, or another write."""
        if (state := state_of(model, step)) != self.pushed:
            # Not the network's own `load_weights`: the layers have put their weights in another order since.
            self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": _without_padding(model)})
            self.engine.collective_rpc(_repack_head)
            self.engine.reset_prefix_cache()
            self.pushed = state


def state_of(model: LanguageModel, step: Step) -> tuple[int, int]:
    """Return what changes whenever the weights may have: the step of a model that is trained, and writes in place."""
    trained = any(weight.requires_grad for weight in model.parameters())
    return step.index if trained else 0, weights_version(model)


def _repack_head(worker: Any) -> None:
    """Let a tied head see the new weights: on a CPU it has packed a copy, which `reload_weights` leaves as it was."""
    head = getattr(worker.get_model(), "lm_head", None)
    if head is not None and hasattr(head, "cpu_linear"):
        head.quant_method.process_weights_after_loading(head)


def start(model: LanguageModel, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> RunningEngine:
    """Start vLLM for the architecture of a model, with random weights, on this rank's device.

    Collective: call it on every rank.

    Args:
        model: says architecture, device and dtype.
        tokenizer: finds stop strings.
        settings: of vLLM's `LLM`.

    Raises:
        ConfigurationError: vLLM is missing or too old, or the ranks cannot be divided into groups.
    """
    vllm, group = import_vllm(), int(settings["tensor_parallel_size"])
    ranks = rank_and_size()[1]
    if ranks % group:
        raise ConfigurationError(
            f"`Vllm.tensor_parallel` must divide the number of ranks, got {group} with {ranks}. Set it to a divisor."
        )
    with tempfile.TemporaryDirectory() as directory, _launched(model), isolate_rng():  # vLLM seeds all generators
        _config_without_padding(model).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        engine = vllm.LLM(
            model=directory,
            load_format="dummy",
            dtype=str(_dtype(model)).removeprefix("torch."),
            generation_config="vllm",
            logprobs_mode="processed_logprobs",
            distributed_executor_backend="external_launcher",
            **settings,
        )
    return RunningEngine(engine, group, sleeps=bool(settings["enable_sleep_mode"]))


def parameters_of(settings: Mapping[str, Any]) -> Any:
    """Return the settings of one request (`vllm_answers.settings_of`) as vLLM's class for them."""
    return importlib.import_module("vllm").SamplingParams(detokenize=bool(settings["stop"]), **settings)


def import_vllm() -> Any:
    """Return the module; raise `ConfigurationError` where it is missing or too old, and warn of one that is newer."""
    try:
        vllm = importlib.import_module("vllm")
    except ImportError as error:
        raise ConfigurationError(
            f'The engine `Vllm` needs vLLM, which cannot be imported ({error}). Run `pip install "veto_pl[vllm]"`, or '
            "use the engine `DecodeLoop`."
        ) from error
    tried, version = ".".join(map(str, TRIED)), str(vllm.__version__)
    found = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if found < TRIED:
        raise ConfigurationError(
            f"The engine `Vllm` needs vLLM {tried} or later, got {version}. Run `pip install --upgrade vllm`."
        )
    if found > TRIED:
        warnings.warn(
            f"The engine `Vllm` was tried with vLLM {tried}, and this is {version}. `train/engine_gap` tells whether "
            "it samples from the student's weights.",
            stacklevel=4,
        )
    return vllm


def _dtype(model: LanguageModel) -> torch.dtype:
    """Return the dtype that training computes in: that of autocast where it is on, else that of the weights."""
    device = model.model.device.type
    own: torch.dtype = model.model.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else own


def _config_without_padding(model: LanguageModel) -> Any:
    """Return the architecture with as many ids as the tokenizer has, so that vLLM knows no padding id."""
    config = plain_config(model)
    config.architectures = [type(model.model).__name__]
    config.get_text_config().vocab_size = min(model.vocab_size, model.head_rows)
    return config


def _without_padding(model: LanguageModel) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of each weight, embeddings and head without their padding rows. Collective."""
    network = model.model
    ends = (network.get_input_embeddings(), network.get_output_embeddings())
    cut = {
        f"{name}.{weight}" for name, part in network.named_modules() if part in ends for weight in ("weight", "bias")
    }
    for name, value in whole_weights(model):
        yield name, value[: model.vocab_size] if name in cut else value


@contextmanager
def _launched(model: LanguageModel) -> Iterator[None]:
    """Set what a launcher tells a process: vLLM finds its rank and its device there, and the other ranks."""
    rank, ranks = rank_and_size()
    told = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": model.model.device.index or 0}
    if ranks == 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": probe.getsockname()[1]}
    # The weights are handed over inside the process, which a worker process of its own could not take.
    told["VLLM_ENABLE_V1_MULTIPROCESSING"] = 0
    before = {name: os.environ.get(name) for name in told}
    os.environ.update({name: str(value) for name, value in told.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
