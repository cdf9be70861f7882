"""The table of contents of a store: who scored, how, and which shards there are."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError

from veto_pl.core.bounds import Count, CountFromZero, Positive
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.offline.cost import NOTHING_ELSE, TruncationCost
from veto_pl.storage.atomic import replacing

FORMAT: Literal[1] = 1
NAME = "manifest.json"


@dataclass(frozen=True)
class Identity:
    """What all scores of a store have in common.

    Args:
        teacher: fingerprint of the model that scored.
        tokenizer: fingerprint of what the ids mean.
        k: ids kept per token.
        temperature: divided the teacher's logits.
        sampled_logp: whether the log-probability of each token of the completions is kept, likely or not; stores of
            earlier versions have none.
    """

    __pydantic_config__: ClassVar[ConfigDict] = NOTHING_ELSE
    teacher: str
    tokenizer: str
    k: Count
    temperature: Positive
    sampled_logp: bool = False


@dataclass(frozen=True)
class Shard:
    """One file of rows.

    Args:
        file: its name inside the folder.
        sha256: of its bytes.
        rows: how many it holds.
        cost: what the truncation costs on its tokens.
    """

    __pydantic_config__: ClassVar[ConfigDict] = NOTHING_ELSE
    file: Annotated[str, StringConstraints(pattern=r"^[^/\\]+\.safetensors$")]
    sha256: str
    rows: CountFromZero
    cost: TruncationCost

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
        format: of the file.
    """

    identity: Identity
    shards: tuple[Shard, ...] = ()
    complete: bool = False
    format: Literal[1] = FORMAT

    @property
    def cost(self) -> TruncationCost:
        """What the truncation costs on the tokens of all shards."""
        return TruncationCost.total(shard.cost for shard in self.shards)

    @staticmethod
    def read(folder: str | Path) -> Manifest:
        """Read what `write` wrote.

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
            return TypeAdapter(Manifest).validate_json(path.read_bytes(), strict=True)
        except (OSError, ValidationError) as error:
            raise DataError(
                f"`{path}` cannot be read as a manifest of format {FORMAT}: {_reason(error):.200}. Delete the folder "
                "and run `veto-pl cache-teacher` again."
            ) from error

    def write(self, folder: Path) -> None:
        """Replace the folder's manifest in one step."""
        content = asdict(self) | {"cost": self.cost.means()}
        with replacing(folder / NAME) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{f'`{place}`: ' if place else ''}{first['msg']}, got {first['input']!r:.60}"
