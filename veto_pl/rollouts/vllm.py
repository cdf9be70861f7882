"""vLLM as the engine of a rollout."""

import copy
import importlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from veto_pl.core.bounds import Count, PositiveShare
from veto_pl.core.sampling import Sampling
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.sharding import gathered
from veto_pl.rollouts.endings import Endings
from veto_pl.rollouts.token_buffer import assemble
from veto_pl.seams import Ending, Engine, LanguageModel, Models, PromptBatch, Sequences, Step, pad_right


@dataclass(frozen=True)
class Vllm(Engine):
    """vLLM in this process: its own copy of the weights, which are pushed when the model has changed.

    The engine starts at its first use, from the model's configuration with random weights, and gets the weights before
    it samples. Its arithmetic differs from training's, so the sampler's log-probabilities, which come from vLLM, differ
    a little from those that the student gives the same tokens. Needs a GPU and `pip install vllm`. One GPU per process;
    a sharded student is gathered while its weights are pushed.

    Tested with vLLM 0.32 on a CPU (`make test-vllm`); it has not been run on a GPU.

    Args:
        gpu_memory_utilization: the share of the GPU's memory that vLLM takes for weights and cache.
        max_model_len: prompt and completion together; None takes the model's own limit.
        sleep: hands the memory of weights and cache back between rollouts; costs a copy of the weights each time.
        enforce_eager: no CUDA graphs: starts faster, runs slower.
    """

    gpu_memory_utilization: PositiveShare = 0.3
    max_model_len: Count | None = None
    sleep: bool = False
    enforce_eager: bool = False

    def generate(
        self,
        prompts: PromptBatch,
        model: LanguageModel,
        sampling: Sampling,
        models: Models,
        step: Step,
        *,
        on_policy: bool,
    ) -> Sequences:
        served = self._served(model, models)
        if self.sleep:
            served.engine.wake_up()
        served.push(model, step)
        seeds = [seed >> 32 for seed in step.seeds("rollout", prompts.numbers)]
        rows = zip(prompts.input_ids.cpu(), prompts.attention_mask.cpu(), strict=True)
        outputs = served.engine.generate(
            [{"prompt_token_ids": ids[mask].tolist()} for ids, mask in rows],
            [_parameters(sampling, model, models, seed) for seed in seeds],
            use_tqdm=False,
        )
        if self.sleep:
            served.engine.sleep(level=1)
        endings = Endings(models, sampling, prompts.input_ids.device, (model,))
        return _sequences(prompts, sampling, endings, outputs, on_policy=on_policy)

    def new_cache(self, model: LanguageModel) -> None:
        """Return None: weights and caches are in the share of the memory that vLLM takes."""

    def _served(self, model: LanguageModel, models: Models) -> "_Served":
        engines = _running.setdefault(model, {})
        if self not in engines:
            engines[self] = _Served(self._start(model, models))
        return engines[self]

    def _start(self, model: LanguageModel, models: Models) -> Any:
        # The weights are handed over inside the process, which a worker process of its own could not take.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        vllm = _vllm()
        with tempfile.TemporaryDirectory() as directory:
            config = copy.deepcopy(model.model.config)
            config.architectures = [type(model.model).__name__]
            config.save_pretrained(directory)
            models.tokenizer.save_pretrained(directory)
            return vllm.LLM(
                model=directory,
                load_format="dummy",
                dtype=str(model.model.dtype).removeprefix("torch."),
                generation_config="vllm",
                logprobs_mode="processed_logprobs",
                enable_sleep_mode=self.sleep,
                gpu_memory_utilization=self.gpu_memory_utilization,
                max_model_len=self.max_model_len,
                enforce_eager=self.enforce_eager,
            )


class _Served:
    """A running engine, and the state of the weights that it was given last."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.pushed: tuple[int, int] | None = None

    def push(self, model: LanguageModel, step: Step) -> None:
        """Gives the engine the weights if they may have changed: after an optimizer step, or another write."""
        trained = any(weight.requires_grad for weight in model.parameters())
        # A write in place counts a tensor's version up, so a checkpoint that is loaded is seen as well.
        state = (step.index if trained else 0, sum(weight._version for weight in model.parameters()))
        if state != self.pushed:
            with gathered(model):
                weights = [(name, weight.detach()) for name, weight in model.model.named_parameters()]
                # Not the network's own `load_weights`: the layers have put their weights in another order since.
                self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            self.engine.reset_prefix_cache()
            self.pushed = state


_running: WeakKeyDictionary[LanguageModel, dict[Vllm, _Served]] = WeakKeyDictionary()


def _vllm() -> Any:
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise ConfigurationError(
            f"The engine `Vllm` needs vLLM, which cannot be imported ({error}). Run `pip install vllm`, or use the "
            "engine `DecodeLoop`."
        ) from error


def _parameters(sampling: Sampling, model: LanguageModel, models: Models, seed: int) -> Any:
    padded = model.head_rows > model.vocab_size
    return _vllm().SamplingParams(
        n=sampling.num_completions,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or -1,
        max_tokens=sampling.max_new_tokens,
        seed=seed,
        stop=list(sampling.stop) or None,
        stop_token_ids=list(models.ends_of(model)),
        ignore_eos=True,  # `stop_token_ids` names every id that ends a completion
        allowed_token_ids=list(range(model.vocab_size)) if padded else None,
        logprobs=0,  # of the drawn token alone
        detokenize=bool(sampling.stop),
        skip_special_tokens=not sampling.stop,  # vLLM looks for stop strings in this text, and one may be special
    )


def _sequences(
    prompts: PromptBatch, sampling: Sampling, endings: Endings, outputs: Iterable[Any], *, on_policy: bool
) -> Sequences:
    """Requests come back in their order, the completions of each with their number in `index`."""
    device = prompts.input_ids.device
    written = [one for output in outputs for one in sorted(output.outputs, key=lambda one: int(one.index))]
    ids, lived = pad_right([torch.tensor(list(one.token_ids), dtype=torch.int64) for one in written])
    logp, _ = pad_right([torch.tensor(_drawn_logp(one)) for one in written])
    if sampling.temperature == 0:
        logp = torch.zeros_like(logp)  # vLLM reports the model's own distribution, and greedy decoding has no choice
    moved = (tensor.to(device) for tensor in (ids, lived, logp))
    ended = _ended(written, endings)
    return assemble(prompts, sampling.num_completions, *moved, ended=ended, on_policy=on_policy)


def _ended(written: Sequence[Any], endings: Endings) -> tuple[Tensor, Tensor]:
    """[R] why each completion ends, as vLLM says it, and [R] the characters that are not judged for that."""
    why = [_why(one) for one in written]
    behind = [
        endings.unjudged(list(one.token_ids)) if end == Ending.STOP else 0
        for one, end in zip(written, why, strict=True)
    ]
    ending, unjudged = (torch.tensor(values, dtype=torch.int64, device=endings.ends.device) for values in (why, behind))
    return ending, unjudged


def _why(completion: Any) -> Ending:
    if completion.finish_reason != "stop":
        return Ending.LIMIT
    # The reason is the string, or the id among `stop_token_ids`.
    return Ending.STOP if isinstance(completion.stop_reason, str) else Ending.EOS


def _drawn_logp(completion: Any) -> list[float]:
    return [float(at[token].logprob) for token, at in zip(completion.token_ids, completion.logprobs, strict=True)]
