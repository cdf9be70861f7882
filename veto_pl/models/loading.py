"""Models with trained weights: a hub id, a local folder, or a GGUF file."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from filelock import FileLock

from veto_pl.core.architectures import auto_class, parts_of
from veto_pl.core.bounds import BelowOne
from veto_pl.core.mistakes import Mistake
from veto_pl.core.part import Setup
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.quantising import check_quantization, quantization
from veto_pl.models.reading import (
    check_endings,
    check_folder,
    check_stored_dropout,
    check_sums,
    check_weights,
    source_errors,
)
from veto_pl.models.weights import SafetensorsWeights
from veto_pl.seams import ModelSource
from veto_pl.seams.models import StoredWeights
from veto_pl.storage.atomic import replacing
from veto_pl.storage.paths import expand_home

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

DType = Literal["auto", "float32", "bfloat16", "float16"]
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
DROPOUTS = ("attention_dropout", "attn_pdrop", "embd_pdrop", "hidden_dropout", "resid_pdrop")


@dataclass(frozen=True)
class Pretrained(ModelSource):
    """A model from a hub id or a local folder; weights are read from safetensors only.

    Args:
        path: hub id or folder.
        revision: branch, tag or commit on the hub.
        dtype: of the weights; `auto` keeps the stored one.
        attention: the attention implementation; `auto` is what transformers prefers for the architecture.
        trust_remote_code: whether code from the hub may run.
        dropout: set on every dropout that the architecture has; None keeps the stored values.
        gradient_checkpointing: recompute activations in the backward pass.
        quantization_config: quantise the weights as they are read, by settings of transformers, such as `{quant_method:
            bitsandbytes, load_in_4bit: true, bnb_4bit_quant_type: nf4}`; what stands for the name is what a config.json
            has under this key. For teachers, and beside the adapter of a `Lora`.
    """

    path: str
    revision: str | None = None
    dtype: DType = "float32"
    attention: Attention = "auto"
    trust_remote_code: bool = False
    dropout: BelowOne | None = None
    gradient_checkpointing: bool = False
    quantization_config: dict[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "path", expand_home(self.path))
        if "://" in self.path:
            raise ConfigurationError(
                f"`Pretrained.path` must be a folder or a hub id, got the address `{self.path[:100]}`. A teacher "
                "behind a server scores rollouts: wrap the objective's rollout in `ServedTeacher`, and set no "
                "`model.teacher`."
            )

    @classmethod
    def examples(cls, folder: Path) -> tuple[Pretrained, ...]:
        from transformers import AutoModelForCausalLM, LlamaConfig

        sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 128}
        config = LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=2)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return (cls(str(folder)),)

    def requirements(self, setup: Setup, path: str) -> Iterable[Mistake]:
        """Check that the method of quantisation is known, its package installed, and the model whole on each rank."""
        if self.quantization_config is None:
            return
        check_quantization(self.quantization_config)
        strategy = setup.trainer.get("strategy")
        if strategy == "fsdp2" or getattr(strategy, "shards_models", False):
            yield Mistake(f"{path}.init_args.quantization_config", "a quantised model under `fsdp2`", "whole weights",
                          "Quantised weights cannot be sharded here: use `ddp`, or leave the quantisation "
                          "out.")  # fmt: skip

    @property
    def tokenizer_source(self) -> Mapping[str, Any]:
        return self._location() | {"trust_remote_code": self.trust_remote_code}

    def config(self) -> PretrainedConfig:
        from transformers import AutoConfig

        with source_errors(self.path):
            check_folder(self.path)
            config: PretrainedConfig = AutoConfig.from_pretrained(
                **self._location(),
                trust_remote_code=self.trust_remote_code,
                attn_implementation=None if self.attention == "auto" else self.attention,
            )
        if self.dtype != "auto":
            config.dtype = getattr(torch, self.dtype)  # or a skeleton would have that of the stored weights
        if self.quantization_config is not None:
            config.quantization_config = dict(self.quantization_config)  # as a stored one would say
        if self.dropout is not None:
            for part, name in ((part, name) for part in parts_of(config) for name in DROPOUTS):
                if hasattr(part, name):
                    setattr(part, name, self.dropout)
        for part in parts_of(config):
            check_stored_dropout(self.path, part, DROPOUTS)
        return config

    def load(self) -> PreTrainedModel:
        model: PreTrainedModel
        # On the CPU, and moved later: transformers takes a default device as a `device_map`, which needs accelerate.
        with source_errors(self.path), torch.device("cpu"):
            check_sums(Path(self.path))
            config, quantised = self.config(), {}
            if self.quantization_config is not None:
                del config.quantization_config  # or the stored weights would be taken for quantised ones
                quantised = {"quantization_config": quantization(self.quantization_config), "device_map": {"": "cpu"}}
            model, found = auto_class(config).from_pretrained(
                **self._location(),
                **quantised,
                config=config,
                dtype=self.dtype,
                attn_implementation=None if self.attention == "auto" else self.attention,
                trust_remote_code=self.trust_remote_code,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                output_loading_info=True,
            )
            check_weights(self.path, model, found)
        return self._prepared(model)

    def skeleton(self) -> PreTrainedModel:
        from transformers import GenerationConfig

        model: PreTrainedModel
        with source_errors(self.path):
            config = self.config()
            # Without the answer the library asks on the terminal whether code from the hub may run.
            model = auto_class(config).from_config(config, trust_remote_code=self.trust_remote_code)
        with contextlib.suppress(OSError):  # not every model has such a file
            model.generation_config = GenerationConfig.from_pretrained(self.path, revision=self.revision)
        return self._prepared(model)

    def published(self) -> Mapping[str, Any] | None:
        return None if Path(self.path).exists() else self._location()

    def unquantised(self) -> ModelSource | None:
        return None if self.quantization_config is None else replace(self, quantization_config=None)

    def stored(self) -> StoredWeights:
        with source_errors(self.path):
            check_folder(self.path)
            return SafetensorsWeights.find(self.path, self.revision)

    def _prepared(self, model: PreTrainedModel) -> PreTrainedModel:
        check_endings(self.path, model)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return model

    def _location(self) -> dict[str, Any]:
        return {"pretrained_model_name_or_path": self.path, "revision": self.revision}


@dataclass(frozen=True)
class Gguf(ModelSource):
    """A model from a GGUF file. It is converted to safetensors once and read from a cache afterwards.

    Args:
        path: the file, or a folder that holds exactly one.
        package: an installed package that holds exactly one GGUF file; it is not imported.
        cache: folder of converted models; by default beside the hub's cache.
        dtype: of the weights.
        attention: the attention implementation; `auto` is what transformers prefers for the architecture.
        dropout: set on every dropout that the architecture has; None keeps the stored values.
    """

    path: str | None = None
    package: str | None = None
    cache: str | None = None
    dtype: DType = "float32"
    attention: Attention = "auto"
    dropout: BelowOne | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.path is None) == (self.package is None):
            raise ConfigurationError(
                f"`Gguf` needs either `path` or `package`, got path={self.path!r} and package={self.package!r}."
            )
        for name in ("path", "cache"):
            object.__setattr__(self, name, expand_home(getattr(self, name)))

    @classmethod
    def examples(cls) -> tuple[Gguf, ...]:
        return ()

    @property
    def tokenizer_source(self) -> Mapping[str, Any]:
        return self._converted().tokenizer_source

    def config(self) -> PretrainedConfig:
        return self._converted().config()

    def load(self) -> PreTrainedModel:
        return self._converted().load()

    def skeleton(self) -> PreTrainedModel:
        return self._converted().skeleton()

    def stored(self) -> StoredWeights:
        return self._converted().stored()

    def _converted(self) -> Pretrained:
        file = self._file()
        status = file.stat()
        key = hashlib.blake2b(f"{file.name}/{status.st_size}/{status.st_mtime_ns}".encode(), digest_size=8).hexdigest()
        folder = self._cache_root() / f"{file.stem}-{key}"
        if not folder.is_dir():
            _convert(file, folder)
        return Pretrained(str(folder), dtype=self.dtype, attention=self.attention, dropout=self.dropout)

    def _cache_root(self) -> Path:
        if self.cache is not None:
            return Path(self.cache)
        from huggingface_hub.constants import HF_HOME

        return Path(HF_HOME) / "veto_pl"

    def _file(self) -> Path:
        place = _package_folder(self.package) if self.package is not None else Path(str(self.path))
        if place.is_file():
            return place
        files = sorted(place.rglob("*.gguf"))
        if len(files) != 1:
            raise ConfigurationError(
                f"`Gguf` needs one GGUF file, found {len(files)} in `{place}`. Name one in `path`."
            )
        return files[0]


def _package_folder(package: str) -> Path:
    # A dotted name imports its parent, so only the part before the first dot is looked up.
    top, *inner = package.split(".")
    spec = importlib.util.find_spec(top) if top else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"`Gguf.package` names `{package}`, which is not installed. Install it, or name a file in `path`."
        )
    return Path(spec.submodule_search_locations[0], *inner)


def _convert(file: Path, folder: Path) -> None:
    """Write a model folder, whole or not at all; of several ranks, the first one does it for all."""
    if missing := [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]:
        raise ConfigurationError(f"Reading GGUF needs {' and '.join(missing)}: pip install 'veto_pl[gguf]'.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"`Gguf.cache` must be a folder that can be written, got {error}.") from error
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            with replacing(folder) as new:
                _save_converted(file, new)


def _save_converted(file: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with source_errors(str(file), expected="a GGUF file of a known architecture"), torch.device("cpu"):
        model = AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
    # The weights are dequantised; what is left of the quantiser would forbid saving them.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    with source_errors(str(file), "tokenizer", "a GGUF file with a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.save_pretrained(folder)
