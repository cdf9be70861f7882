"""`veto-pl push`: an export on the Hugging Face hub, or on a server that speaks as it does."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veto_pl.core.mistakes import shorten
from veto_pl.exceptions import ConfigurationError, VetoError
from veto_pl.models.export_folder import CARD_SENTENCE, EXPORT_FILES
from veto_pl.report import Run
from veto_pl.report.hub_card import HubCard
from veto_pl.storage.checksums import SUMS, damaged, read_sums
from veto_pl.storage.run_folder import METRICS

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"


def push_export(
    export: Path, repo: str, *, public: bool = False, licence: str | None = None, run: Path | None = None
) -> str:
    """Put an export onto the hub in one commit, and return the commit's address.

    The repository is made, private unless `public`, where there is none. What an earlier export has left there, and
    this one has not, is removed. The server is that of the environment variable HF_ENDPOINT, or the hub.

    Args:
        export: a folder that a run, or `veto-pl export`, has written.
        repo: `owner/name`.
        public: everybody may read it.
        licence: an identifier of the hub for the card, such as `apache-2.0`.
        run: the folder of the run, for the metrics of the card; None takes that around the export if it is one.

    Raises:
        ConfigurationError: the folder is no export or damaged, or the repository is public and must not be.
        VetoError: the hub has refused, or cannot be reached.
    """
    sums = _checked(export)
    around = export.resolve().parent
    known = run if run is not None else around if (around / METRICS).is_file() else None
    text = (export / CARD).read_text(encoding="utf-8", errors="replace")
    card = HubCard(text, repo, licence, None if known is None else Run.read(known)).text().encode()
    with _told(repo):
        return _commit(_api(), export, repo, sums, card, public=public)


def _checked(export: Path) -> dict[str, str]:
    """Return the checksums of an export's files; raise `ConfigurationError` for another folder, or a damaged one."""
    sums, card = read_sums(export) if export.is_dir() else None, export / CARD
    if sums is None or not card.is_file() or CARD_SENTENCE not in card.read_text(encoding="utf-8", errors="replace"):
        raise ConfigurationError(
            f"`{export}`: expected the folder of an export, with `{CARD}` and `{SUMS}`. `veto-pl fit` writes one into "
            "its run folder, and `veto-pl export CHECKPOINT FOLDER` another one."
        )
    if broken := damaged(export, sums, [name for name in sums if name != CARD]):
        raise ConfigurationError(
            f"`{export}` is damaged: `{broken[0]}` is not what was written. Export the student again."
        )
    return sums


def _api() -> HfApi:
    from huggingface_hub import HfApi, get_token

    if (token := get_token()) is None:
        raise ConfigurationError(
            "The hub wants to know who pushes, and there is no token. Run `hf auth login`, or set the environment "
            "variable HF_TOKEN to a token that may write."
        )
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token, library_name="veto_pl")


def _commit(api: HfApi, export: Path, repo: str, sums: dict[str, str], card: bytes, *, public: bool) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    there = _files_there(api, repo, public=public)
    hashes = {**sums, CARD: hashlib.sha256(card).hexdigest()}
    listed = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items())).encode()
    contents: dict[str, Any] = {name: export / name for name in sums} | {CARD: card, SUMS: listed}
    added = [CommitOperationAdd(name, content) for name, content in contents.items()]
    left = [name for name in there if name not in contents and EXPORT_FILES.fullmatch(name)]
    removed = [CommitOperationDelete(name) for name in left]
    done = api.create_commit(repo, [*added, *removed], commit_message="Export of veto_pl")
    return str(done.commit_url)


def _files_there(api: HfApi, repo: str, *, public: bool) -> list[str]:
    """Return the files of the repository, which is made where there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=not public, exist_ok=True)
        return []
    if not info.private and not public:
        raise ConfigurationError(
            f"`{repo}` is public, so everybody could read the export. Add `--public` if that is meant, make it private "
            "on the hub, or name another one."
        )
    return [one.rfilename for one in info.siblings or []]


@contextmanager
def _told(repo: str) -> Iterator[None]:
    """Turn what goes wrong on the way to the hub into a sentence."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except VetoError:
        raise
    except HFValidationError as error:
        raise ConfigurationError(f"`{repo}`: expected the name of a repository, `owner/name`. {error}") from error
    except OfflineModeIsEnabled as error:
        raise VetoError("Nothing was pushed: HF_HUB_OFFLINE is set, so the hub is not asked. Unset it.") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        raise VetoError(f"Nothing was pushed: {_meaning(status, repo)} The hub says: {shorten(error, 300)}") from error
    except Exception as error:  # of the library that speaks HTTP, which is another one from version to version
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise
        server = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        raise VetoError(
            f"Nothing was pushed: {server} cannot be reached: {shorten(error)}. Look at the network and at HF_ENDPOINT."
        ) from error


def _meaning(status: int | None, repo: str) -> str:
    owner = repo.partition("/")[0]
    meanings = {
        401: "the token is not accepted. Run `hf auth login`, or set HF_TOKEN to one that is valid and may write.",
        403: f"the token may not write to `{repo}`. Use one with the right to write, and a name of yours.",
        404: f"there is no `{repo}`, and it cannot be made: `{owner}` is no name of the token's owner.",
    }
    return meanings.get(status or 0, f"the hub answers with {status}.")
