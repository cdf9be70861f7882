"""Any data set of rows: in files of all formats, in folders of them, and on the hub."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.data.example_files import split_files
from veto_pl.data.example_rows import ExampleStream, Say, StoredExamples, stored
from veto_pl.data.fingerprints import brief_digest, source_key
from veto_pl.data.hub import hub_dataset, hub_key
from veto_pl.data.image_fields import ImagePlace, checked
from veto_pl.data.jsonl import TEXT, check_fields, to_example
from veto_pl.data.rewards import LastNumber, NoReward
from veto_pl.data.row_file import OnBadRow, RowFile
from veto_pl.data.row_formats import Placed
from veto_pl.data.splits import check_paths, check_sizes, check_stop, pick
from veto_pl.seams import Example, Mistake, Picture, Reward, Setup, Task

_NOT_OF_A_ROW = ("train", "validation", "test", "verifier", "streaming", "stop", "hub", "hub_config")
"""Settings that say which rows are read and how they are judged, and not what is made of one."""


@dataclass(frozen=True, kw_only=True)
class RowTask(Task):
    """What tasks of rows share: where these are, and how completions are judged.

    Args:
        train: the file or folder of the training rows; with `hub`, the name of their split.
        validation: the file, folder or split of the validation rows, or None for none.
        test: the file, folder or split of the test rows, or None for none.
        hub: the data set's name on the Hugging Face hub, or None for files.
        hub_config: the configuration of a data set of the hub that has several.
        teacher: the field that names the teacher of a row, for objectives with several teachers, or None for none.
        verifier: scores completions.
        limit: read so many rows of each split, or None for all.
        on_bad_row: `error` stops at the first bad row, `skip` leaves bad rows out and warns with their number.
        streaming: read the training rows as they are needed, not before the run begins, and keep none of them.
        stop: strings that end a completion, beside those of `Sampling.stop`.
        images: the field with a row's image or the list of its images (paths, addresses, bytes, or what the data sets
            of the hub hold), for students that read images; None for none.
        image_folder: the folder in which relative paths of images begin; None for that of the row's file.
    """

    train: str
    validation: str | None = None
    test: str | None = None
    hub: str | None = None
    hub_config: str | None = None
    teacher: str | None = None
    verifier: Reward = NoReward()
    limit: int | None = None
    on_bad_row: OnBadRow = "error"
    streaming: bool = False
    stop: tuple[str, ...] = ()
    images: str | None = None
    image_folder: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        check_sizes(name, limit=self.limit)
        check_stop(name, self.stop)
        check_paths(name, train=self.train, validation=self.validation, test=self.test)

    @abstractmethod
    def examples_of(self, row: Any, where: str, *, split: str) -> Iterable[Example]:
        """Return the examples of a row; raise `DataError`, whose message `where` opens, for a bad one."""

    def load(self, split: str) -> Sequence[Example] | ExampleStream:
        """Return the examples of the split; none where it has no rows."""
        source = pick({"train": self.train, "validation": self.validation, "test": self.test}, split)
        if source is None:
            return []
        streamed = self.streaming and split == "train"
        if self.hub is not None:
            return self._from_hub(source, split, streamed=streamed)
        if streamed:
            name = brief_digest(source)
            return ExampleStream(lambda: checked(self._file(source, split), self.images, source), source, name)
        key = partial(source_key, source, *self._settings(split))
        read = self._file
        return stored(
            lambda say: checked(read(source, split, say), self.images, source), origin=source, key=self._known(key),
            place=str(Path(source).absolute()),
        )  # fmt: skip

    def pictures_of(self, row: Mapping[str, Any], where: str) -> tuple[Picture, ...]:
        """Return the images in the field `images` of a row; raise `DataError` for one that is missing or none."""
        return () if self.images is None else ImagePlace(where, self.image_folder).pictures(row, self.images)

    def reward(self, example: Example, completion: str) -> float:
        """Return the verifier's score."""
        return self.verifier(example, completion)

    def rewards(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        """Return the verifier's score of each pair."""
        return self.verifier.batch(examples, completions)

    @property
    def judges(self) -> bool:
        """Whether the verifier does."""
        return self.verifier.judges

    def _from_hub(self, source: str, split: str, *, streamed: bool) -> StoredExamples | ExampleStream:
        assert self.hub is not None, "the caller has asked for it"
        origin, name = f"{self.hub}/{source}", type(self).__name__
        rows = hub_dataset(self.hub, source, owner=name, config=self.hub_config, field=split, streaming=streamed)

        def read(say: Say = rank_zero_warn) -> Iterator[Example]:
            return checked(self._file(origin, split, say, lambda: _placed(rows, origin)), self.images, origin)

        if streamed:
            return ExampleStream(read, origin=origin)
        return stored(read, origin=origin, key=self._known(partial(hub_key, rows, *self._settings(split))))

    def _file(self, source: str, split: str, say: Say = rank_zero_warn, rows: Any = None) -> RowFile:
        return RowFile(source, partial(self._made, split=split), self.on_bad_row, self.limit, say, rows)

    def _made(self, row: Any, where: str, *, split: str) -> Iterator[Example]:
        for example in self.examples_of(row, where, split=split):
            yield example if self.teacher is None else _with_teacher(example, self.teacher, where)

    def _known(self, key: Callable[[], str | None]) -> Callable[[], str | None]:
        """Return what names the rows; nothing does for a class of another package, whose code is not in the name."""
        return key if type(self).__module__.startswith("veto_pl.") else lambda: None

    def _settings(self, split: str) -> list[Any]:
        """Return everything that what is made of a row depends on."""
        settings = [getattr(self, field.name) for field in fields(self) if field.name not in _NOT_OF_A_ROW]
        return [type(self).__qualname__, split == "train", *settings]


def _placed(rows: Iterable[Any], origin: str) -> Iterator[Placed]:
    return ((f"{origin}:{number}", partial(dict, row)) for number, row in enumerate(rows, 1))


def _with_teacher(example: Example, field: str, where: str) -> Example:
    check_fields(example.row, where, **{field: TEXT})
    return replace(example, teacher=example.row[field])


@dataclass(frozen=True, kw_only=True)
class Rows(RowTask):
    """Rows of a prompt and a reference: JSON lines, JSON, Parquet, Arrow, Feather, CSV, TSV, folders, the hub.

    Args:
        prompt: the field that holds the prompt.
        completion: the field that holds the reference completion, or None where the rows have none.

    Raises:
        ConfigurationError: a number is negative, or a path or stop string empty.
        DataError: for a file that cannot be read, or a bad row, named as `file:row: field`.
    """

    prompt: str = "prompt"
    completion: str | None = "completion"

    @classmethod
    def examples(cls, folder: Path) -> tuple[Rows, ...]:
        paths = split_files(
            folder, [{"prompt": f"{number} + 1 =", "completion": f"{number + 1}"} for number in range(9)]
        )
        return cls(**paths, verifier=LastNumber()), cls(**paths, completion=None, limit=2), cls(**paths, streaming=True)

    def requirements(self, setup: Setup, path: str) -> Iterator[Mistake]:
        """Yield that somebody reads references, of which the rows have none."""
        if self.completion is None and setup.references_for:
            yield Mistake(f"{path}.init_args.completion", f"`null` with a rollout `{setup.references_for}`",
                          "the field of the reference completions",
                          "Name it, or let the student write (`FromStudent`).")  # fmt: skip

    def examples_of(self, row: Any, where: str, *, split: str) -> list[Example]:
        """Return the one example of a row."""
        example = to_example(row, prompt=self.prompt, completion=self.completion, where=where)
        if self.images is None:
            return [example]
        fields = {name: value for name, value in row.items() if name != self.images}
        return [replace(example, row=fields, images=self.pictures_of(row, where))]
