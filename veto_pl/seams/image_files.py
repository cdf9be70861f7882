"""Pictures: images of rows, each the path of a file or the bytes of one."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse
from urllib.request import urlopen

from veto_pl.exceptions import ConfigurationError, DataError

_ORIENTATION = 0x0112
"""The field of EXIF that says how an image is turned; from 5 on it lies on its side."""
_SECONDS = 60.0
"""The longest that a server may take to send an image."""


@dataclass(frozen=True)
class Picture:
    """An image as a file. It is decoded where it is needed, and pickled as a path or as bytes.

    Args:
        path: of the file; empty where its bytes are given.
        data: the bytes of a file, of any format that Pillow reads.
    """

    path: str = ""
    data: bytes = field(default=b"", repr=False)

    @staticmethod
    def of(given: Any) -> Picture:
        """Return the picture that something stands for.

        Args:
            given: a path, an address (`file:`, `data:`, or `http:`, which is read at once), the bytes of a file, an
                object with `bytes` or `path` as data sets have it, an image of Pillow, or an array of uint8, [H, W] or
                [H, W, C].

        Raises:
            DataError: it is none of these, or cannot be read.
        """
        if isinstance(given, Picture):
            return given
        if isinstance(given, bytes | bytearray) and given:
            return Picture(data=bytes(given))
        if isinstance(given, str) and given.strip():
            return _addressed(given)
        if isinstance(given, Path):
            return Picture(str(given))
        if isinstance(given, Mapping) and (given.get("bytes") or given.get("path")):
            return Picture.of(given.get("bytes") or given["path"])
        if hasattr(given, "__array_interface__") or hasattr(given, "numpy"):
            return _encoded(_from_array(given))
        raise DataError(
            f"expected an image (a path, an address, bytes, an image of Pillow, or an array), got "
            f"{type(given).__name__} {str(given)[:40]!r}."
        )

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"`{self.path[-200:]}`" if self.path else f"of {len(self.data):,} bytes"

    def inside(self, folder: Path) -> Picture:
        """Return the same picture with a relative path taken from `folder`."""
        relative = self.path and not Path(self.path).expanduser().is_absolute()
        return Picture(str(folder / self.path)) if relative else self

    def read(self) -> bytes:
        """Return the bytes of the file; raise `DataError` where there is none."""
        if not self.path:
            return self.data
        file = Path(self.path).expanduser()
        try:
            if file.exists() and not file.is_file():  # a pipe would wait for ever
                raise OSError("it is a folder, a pipe or a device")
            return file.read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"The image {self.name} cannot be read: {reason}. Check the path.") from error

    @property
    def digest(self) -> str:
        """A hash of the file's content, in hexadecimal."""
        return hashlib.blake2b(self.read(), digest_size=16).hexdigest()

    def opened(self, *, whole: bool = True) -> Any:
        """Return it as an image of Pillow, in RGB and upright; without `whole`, only look at how the file begins.

        Raises:
            ConfigurationError: Pillow is not installed.
            DataError: the file is missing or damaged.
        """
        return _decoded(self.read(), self.name, whole=whole)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the upright image, as the beginning of the file tells them."""
        image = self.opened(whole=False)
        width, height = image.size
        lies = image.getexif().get(_ORIENTATION, 1) >= 5
        return (height, width) if lies else (width, height)

    def thumbnail(self, side: int = 96) -> str:
        """Return a small copy for pages, as a `data:` address; nothing is wider or higher than `side` pixels."""
        small = self.opened()
        small.thumbnail((side, side))
        kept = io.BytesIO()
        small.save(kept, "PNG")
        return f"data:image/png;base64,{base64.b64encode(kept.getvalue()).decode()}"

    def plain(self) -> dict[str, str]:
        """Return it as plain values, for `from_plain`."""
        return {"path": self.path} if self.path else {"data": base64.b64encode(self.data).decode()}

    @staticmethod
    def from_plain(values: Mapping[str, str]) -> Picture:
        """Return the picture that `plain` has told."""
        return Picture(values["path"]) if "path" in values else Picture(data=base64.b64decode(values["data"]))


def pillow() -> Any:
    """Import Pillow; raise `ConfigurationError` where it is not installed."""
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise ConfigurationError("Rows with images need Pillow: pip install 'veto_pl[vision]'.") from error
    return PIL


def _addressed(text: str) -> Picture:
    """Return the picture at a path or an address."""
    address = urlparse(text)
    if address.scheme == "data":
        head, _, body = text.partition(",")
        try:
            return Picture(data=base64.b64decode(body, validate=True) if ";base64" in head else unquote(body).encode())
        except (binascii.Error, ValueError) as error:
            raise DataError(f"expected an image, got a `data:` address that is not base64: {error}.") from error
    if address.scheme == "file":
        return Picture(unquote(address.path))
    if address.scheme in ("http", "https"):
        try:
            with urlopen(text, timeout=_SECONDS) as answer:
                return Picture(data=answer.read())
        except (OSError, ValueError) as error:
            raise DataError(f"The image at {text[:200]} cannot be loaded: {error}. Check the address.") from error
    return Picture(text)


def _decoded(data: bytes, name: str, *, whole: bool) -> Any:
    library = pillow()
    try:
        image = library.Image.open(io.BytesIO(data))
        if not whole:
            return image
        return library.ImageOps.exif_transpose(image).convert("RGB")  # as transformers loads one
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        reason = " ".join(re.sub(r"<_io\.BytesIO[^>]*>", "it", str(error)).split())[:200]
        raise DataError(f"The image {name} is damaged or no image: {reason}. Mend it, or leave it out.") from error


def _from_array(given: Any) -> Any:
    """Return an image of Pillow as it is, and an array as one."""
    library = pillow()
    if isinstance(given, library.Image.Image):
        return given
    import numpy as np

    values = np.asarray(given)
    shape = values.shape[:-1] if values.ndim == 3 and values.shape[-1] == 1 else values.shape
    if values.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[-1] in (3, 4))):
        raise DataError(
            f"expected an image as an array of uint8, [H, W] or [H, W, C] with 1, 3 or 4 channels, got {values.dtype} "
            f"{list(values.shape)}."
        )
    return library.Image.fromarray(values.reshape(shape))


def _encoded(image: Any) -> Picture:
    """Return an image of Pillow as the bytes of a PNG file, which loses nothing."""
    upright = pillow().ImageOps.exif_transpose(image)
    kept = io.BytesIO()
    plain = upright if upright.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else upright.convert("RGB")
    plain.save(kept, "PNG", compress_level=1)
    return Picture(data=kept.getvalue())
