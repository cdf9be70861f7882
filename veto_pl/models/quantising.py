"""Settings of quantisation as transformers takes them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from torch import nn

from veto_pl.core.mistakes import did_you_mean
from veto_pl.exceptions import ConfigurationError

PACKAGES = {"bitsandbytes": "bitsandbytes", "torchao": "torchao", "hqq": "hqq", "quanto": "optimum-quanto"}
"""What each method needs, as far as it is known here."""


def quantization(settings: Mapping[str, Any]) -> Any:
    """Return the configuration of transformers for these settings.

    Raises:
        ConfigurationError: the method, or a setting of it, is not known.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    given = dict(settings)
    if "quant_method" not in given and ("load_in_4bit" in given or "load_in_8bit" in given):
        given["quant_method"] = "bitsandbytes"
    method = str(given.pop("quant_method", None))
    name = method
    if method == "bitsandbytes":
        name = "bitsandbytes_8bit" if given.get("load_in_8bit") else "bitsandbytes_4bit"
    cls = AUTO_QUANTIZATION_CONFIG_MAPPING.get(name)
    if cls is None:
        known = sorted(
            set(AUTO_QUANTIZATION_CONFIG_MAPPING) - {"bitsandbytes_4bit", "bitsandbytes_8bit"} | {"bitsandbytes"}
        )
        hint = did_you_mean(method, known) or f"There are: {', '.join(known)}."
        raise ConfigurationError(
            f"`Pretrained.quantization_config` has the `quant_method` `{method}`, which transformers does not have. "
            f"{hint}"
        )
    taken = [p for p in inspect.signature(cls.__init__).parameters if p not in ("self", "kwargs")]
    for setting in given:  # a name that it does not know it would leave out without a word
        if setting not in taken:
            hint = did_you_mean(setting, taken) or f"There are: {', '.join(taken)}."
            raise ConfigurationError(f"`Pretrained.quantization_config` has `{setting}`, which {cls.__name__} does not "
                                     f"take. {hint}")  # fmt: skip
    try:
        return cls(**given)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"`Pretrained.quantization_config` is refused by {cls.__name__}: {error}") from error


def check_quantization(settings: Mapping[str, Any]) -> None:
    """Check the settings, and that the package of the method is installed; raise `ConfigurationError` where not."""
    method = str(getattr(quantization(settings).quant_method, "value", ""))
    package = PACKAGES.get(method)
    missing = [name for name in (package, "accelerate") if name and find_spec(name.replace("optimum-", "")) is None]
    if missing:
        extra = "pip install 'veto_pl[quantised]'" if method == "bitsandbytes" else f"pip install {' '.join(missing)}"
        raise ConfigurationError(f"A model quantised by {method} needs {' and '.join(missing)}: {extra}.")


def keep_layout(model: nn.Module) -> None:
    """Let the weights of a model's layers of four bits stay as peft reads them.

    On processors with bfloat16 arithmetic (AVX512), bitsandbytes repacks the weights of a layer when it first runs in
    evaluation. peft knows nothing of that and takes other numbers for the weights of a DoRA, and of a merge.
    """
    for layer in model.modules():
        if "support_avx512bf16_for_cpu" in vars(layer):
            vars(layer)["support_avx512bf16_for_cpu"] = False


def packed_size(config: Any) -> float | None:
    """Return the bytes that a number of a layer takes which bitsandbytes has quantised; None where it does not.

    Four bits have a float32 for each 64 numbers, or with double quantisation a byte, and a float32 for 256 of these.
    """
    settings = getattr(config, "quantization_config", None) or {}
    given = settings if isinstance(settings, Mapping) else settings.to_dict()
    if given.get("load_in_8bit"):
        return 1.0
    if given.get("load_in_4bit"):
        return 0.5 + ((1 + 4 / 256) / 64 if given.get("bnb_4bit_use_double_quant") else 4 / 64)
    return None
