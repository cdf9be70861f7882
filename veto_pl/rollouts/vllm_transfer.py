"""How weights get to a vLLM server: while it pauses, by its weight transfer or through a folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from veto_pl.exceptions import DataError
from veto_pl.models.merging import weight_shapes, whole_weights
from veto_pl.rollouts.vllm_process import import_vllm
from veto_pl.seams import LanguageModel
from veto_pl.servers.endpoint import Endpoint, NoAnswerError


@dataclass(frozen=True)
class Link:
    """The routes of a server that are not those of completions; the first rank uses them.

    Args:
        endpoint: of the completions.
        rank: this one.
    """

    endpoint: Endpoint
    rank: int

    @property
    def root(self) -> str:
        """The address without the version."""
        return self.endpoint.base_url.rstrip("/").removesuffix("/v1")

    def post(self, path: str, body: dict[str, Any]) -> None:
        """Send a request from the first rank; raise `DataError` where the server does not answer."""
        if self.rank:
            return
        (reply,) = replace(self.endpoint, base_url=self.root).ask_all(path, [body])
        if isinstance(reply, NoAnswerError):
            raise DataError(
                f"The server at {self.root} did not take `{path}` ({reply}). Start it with `VLLM_SERVER_DEV_MODE=1`, "
                "and see its log."
            )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the server finish what it writes, and forget its caches, while weights change."""
        self.post("/pause?mode=wait&clear_cache=true", {})
        yield
        self.post("/resume", {})


def by_folder(link: Link, model: LanguageModel, folder: str) -> None:
    """Write the weights into a folder, and let the server read them. Collective."""
    from safetensors.torch import save_file

    # Every rank gathers, and the first one keeps what comes.
    weights = {name: value.cpu().contiguous() for name, value in whole_weights(model) if link.rank == 0}
    if link.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        Path(folder).mkdir(parents=True)
        save_file(weights, Path(folder, "model.safetensors"), metadata={"format": "pt"})
    with link.paused():
        link.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})


def by_nccl(link: Link, model: LanguageModel, host: str, port: int, size: int) -> None:
    """Send the weights by vLLM's own weight transfer, whose first rank this training's is. Collective."""
    if model not in _senders:
        import_vllm()
        from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        _senders[model] = WeightTransferTrainerFactory.trainer_init(
            init_info=NCCLTrainerInitInfo(master_address=host, master_port=port, world_size=size, rank=link.rank),
            client=HTTPVLLMWeightSyncClient(link.root, timeout=link.endpoint.timeout),
            source=_source_of(model),
        )
    with link.paused():
        _senders[model].send_weights()


def _source_of(model: LanguageModel) -> Any:
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Weights(WeightSource):  # type: ignore[misc]
        """The weights of a model as vLLM asks for them, gathered one at a time."""

        def metadata(self) -> list[Any]:
            return [ParamMeta(name, dtype, shape) for name, dtype, shape in weight_shapes(model)]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return whole_weights(model)

    return Weights()


_senders: WeakKeyDictionary[LanguageModel, Any] = WeakKeyDictionary()
