"""The table of contents of a store: who scored, how, and which shards there are."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.offline.cost import TruncationCost
from veto_pl.storage.atomic import replacing

FORMAT = 1
NAME = "manifest.json"


@dataclass(frozen=True)
class Identity:
    """What all scores of a store have in common.

    Args:
        teacher: fingerprint of the model that scored.
        tokenizer: fingerprint of what the ids mean.
        k: ids kept per token.
        temperature: divided the teacher's logits.
    """

    teacher: str
    tokenizer: str
    k: int
    temperature: float

    def __post_init__(self) -> None:
        for name in ("teacher", "tokenizer"):
            _typed(name, getattr(self, name), str)
        if _typed("k", self.k, int) < 1 or not 0 < _typed("temperature", self.temperature, float, int) < math.inf:
            raise ValueError(f"`k` is {self.k} and `temperature` {self.temperature}")


@dataclass(frozen=True)
class Shard:
    """One file of rows.

    Args:
        file: its name inside the folder.
        sha256: of its bytes.
        rows: how many it holds.
        cost: what the truncation costs on its tokens.
    """

    file: str
    sha256: str
    rows: int
    cost: TruncationCost

    def __post_init__(self) -> None:
        _typed("sha256", self.sha256, str)
        _typed("rows", self.rows, int)
        if self.file != Path(_typed("file", self.file, str)).name or not self.file.endswith(".safetensors"):
            raise ValueError(f"`file` is {self.file!r:.80}, which is no safetensors file of the folder")

    @property
    def tokens(self) -> int:
        """Completion tokens of its rows."""
        return self.cost.tokens


@dataclass(frozen=True)
class Manifest:
    """A store's `manifest.json`.

    Args:
        identity: what all scores have in common.
        shards: the files, in the order in which they were written.
        complete: False while rows are still missing.
    """

    identity: Identity
    shards: tuple[Shard, ...] = ()
    complete: bool = False
    cost: TruncationCost = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cost", TruncationCost.total(shard.cost for shard in self.shards))

    @staticmethod
    def read(folder: str | Path) -> Manifest:
        """Reads what `write` wrote.

        Raises:
            ConfigurationError: there is no store in the folder.
            DataError: the file is damaged, or from another version.
        """
        path = Path(folder) / NAME
        if not path.is_file():
            raise ConfigurationError(
                f"`{folder}` holds no {NAME}, so it is no store of teacher scores. Write one with `veto-pl "
                f"cache-teacher --config <the run's config, with its teacher> --out {folder}`, or correct the path."
            )
        try:
            return _from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(
                f"`{path}` cannot be read as a manifest of format {FORMAT}: {error!r:.200}. Delete the folder and run "
                "`veto-pl cache-teacher` again."
            ) from error

    def write(self, folder: Path) -> None:
        """Replaces the folder's manifest in one step."""
        content = {"format": FORMAT, "complete": self.complete, "identity": asdict(self.identity)}
        content |= {"cost": self.cost.means(), "shards": [asdict(shard) for shard in self.shards]}
        with replacing(folder / NAME) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _from_json(content: dict[str, Any]) -> Manifest:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']}")
    shards = [Shard(**shard | {"cost": TruncationCost(**shard["cost"])}) for shard in content["shards"]]
    return Manifest(Identity(**content["identity"]), tuple(shards), _typed("complete", content["complete"], bool))


def _typed(name: str, value: Any, *kinds: type) -> Any:
    """The value; raises `TypeError` where it is of another type, for dataclasses do not look."""
    if type(value) not in kinds:
        raise TypeError(f"`{name}` is {value!r:.60}")
    return value
