"""The child program that holds the untrusted code: runs it, then answers calls of what it defined.

Nothing here is trusted once the code has run: it may patch this module, and gains no more than a reply of its choice.
"""

from __future__ import annotations

import builtins
import os
import sys

from veto_pl.sandbox.codec import decode, encode, receive, send
from veto_pl.sandbox.fence import enter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

READY = b"ready"


def main(job: dict[str, Any]) -> None:
    """Enter the fence, report that, run the code and serve calls."""
    enter(job["fence"])
    send(job["replies"], READY)
    sys.modules["solution"] = module = type(sys)("solution")  # where dataclasses and typing look for names
    namespace = module.__dict__
    exec(compile(job["program"], "<solution>", "exec", dont_inherit=True), namespace)
    serve(namespace, job["calls"], job["replies"])
    os._exit(0)  # without waiting for threads


def serve(namespace: dict[str, Any], calls: int, replies: int) -> None:
    """Answer requests `(operation, target, ...)` with `("value", ...)` or `("raised", name of the exception)`.

    Of an exception that the program defines, the name is that of the builtin one that it is made from.
    """
    objects: list[Any] = []

    def keep(value: Any) -> tuple[int, bool]:
        objects.append(value)
        return len(objects) - 1, _truth(value)

    while (request := receive(calls)) is not None:
        try:
            operation, target, *rest = decode(request, lambda number, _: objects[number])
            reply = encode(("value", _perform(namespace, operation, target, rest)), keep)
        except BaseException as error:
            reply = encode(("raised", _builtin(error)), keep)
        send(replies, reply)


def _perform(namespace: dict[str, Any], operation: str, target: Any, rest: list[Any]) -> Any:
    if operation == "name":
        return namespace[target]
    if operation == "call":
        return target(*rest[0], **rest[1])
    if operation == "get":
        return getattr(target, rest[0])
    return setattr(target, rest[0], rest[1])


def _builtin(error: BaseException) -> str:
    names = (kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind)
    name: str = next(names)
    return name


def _truth(value: Any) -> bool:
    try:
        return bool(value)
    except Exception:
        return True
