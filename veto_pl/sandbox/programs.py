"""Extracts the program from the text that a model wrote, by patterns only: a parser could be attacked."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from textwrap import dedent, indent

_FENCED = re.compile(r"^[ \t]*(```|~~~)[^\n]*\n(.*?)(?:^[ \t]*\1|\Z)", re.MULTILINE | re.DOTALL)
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_LONG_STRING = re.compile(r"(\"{3}|'{3}).*?(?:\1|\Z)", re.DOTALL)
_HELPERS = re.compile(r"\s*(?:import|from|def|class|async|@)\b")
_PROSE = re.compile(
    r"^(?!(?:import|from|def|class|async|if|elif|else|for|while|with|try|except|finally|return|pass|assert|raise|del|global|nonlocal)\b"
    r"|[\s@#)\]}\"']|[A-Za-z_][\w.]*[ \t]*(?:[=(\[+*/-]|(?:,[ \t]*[A-Za-z_][\w.]*[ \t]*)+=))",
    re.MULTILINE,
)
_NO_BODY = re.compile(r"(?:#.*|pass|\.\.\.|raise NotImplementedError.*)?")


def defines(text: str, names: Sequence[str]) -> bool:
    r"""Return whether the text defines one of the names at its left margin.

    Example:
        >>> defines("import math\ndef area(r):\n    return 1", ["area"]), defines("  def area(): ...", ["area"])
        (True, False)
    """
    found = "|".join(map(re.escape, names))
    pattern = rf"^(?:(?:async[ \t]+)?def[ \t]+|class[ \t]+)(?:{found})\b|^(?:{found})[ \t]*="
    return re.search(pattern, text, re.MULTILINE) is not None


def until_stop(text: str, stop: Sequence[str]) -> str:
    r"""Return the text before the first of the strings.

    Example:
        >>> until_stop("    return 1\n\nprint(2)\ndef g(): ...", ["\ndef", "\nprint"])
        '    return 1\n'
    """
    ends = [place for end in stop if (place := text.find(end)) >= 0]
    return text[: min(ends, default=len(text))]


def extract_program(prompt: str, completion: str, names: Sequence[str], stop: Sequence[str]) -> str:
    r"""Return the program that a completion stands for.

    What stands between `<think>` and `</think>` is left out. Of fenced blocks, the last one that defines a name with a
    body is taken, behind earlier blocks of imports and definitions. Else an unfenced definition is taken, up to prose.
    Both stand behind the prompt, whose imports and helpers they may use. Any other text continues the prompt, up to a
    stop string: a block at its beginning, the only block behind prose, or the text itself.

    Args:
        prompt: code that the completion may continue.
        completion: any text.
        names: what the tests call.
        stop: strings that end a continuation.

    Example:
        >>> print(extract_program("def f(x):\n", "    return x\n\nprint(f(1))", ["f"], ["\nprint"]))
        def f(x):
            return x
        <BLANKLINE>
        >>> print(extract_program("", "So:\n```python\ndef f(x):\n    return x\n```\nDone.", ["f"], []))
        def f(x):
            return x
        <BLANKLINE>
    """
    text = _THOUGHT.sub("", completion).rpartition("</think>")[2]  # the prompt may have opened the thought
    blocks = [match[2] for match in _FENCED.finditer(text)]
    whole = _definitions(blocks, names, _gives)
    if whole is None and not blocks and not _indented(text) and defines(text, names):
        # Behind a function that the prompt has begun, these strings end it; here they may begin it.
        whole = until_stop(_without_prose(text), () if defines(prompt, names) else stop)
    body = _body(text, blocks, names)
    if whole is None and body is None:
        whole = _definitions(blocks, names, lambda block, name: defines(block, [name]))
    if whole is not None:
        # Nothing may stand before an import from the future.
        return whole if "from __future__" in whole else completed(prompt, names) + whole
    if body is not None:
        text = _shifted(body, _margin(prompt)) if defines(prompt, names) else body
    return prompt + _aligned(prompt, until_stop(text, stop), names)


def _definitions(blocks: Sequence[str], names: Sequence[str], gives: Callable[[str, str], bool]) -> str | None:
    """Return, joined, for each name the last block that defines it, behind earlier blocks of imports and helpers."""
    blocks = [dedent(block) for block in blocks]
    drafts = [place for place, block in enumerate(blocks) if defines(block, names)]
    found = {next((place for place in drafts[::-1] if gives(blocks[place], name)), -1) for name in names} - {-1}
    if not found:
        return None
    earlier = enumerate(blocks[: max(found) + 1])
    helpers = {place for place, block in earlier if _HELPERS.match(block) and ">>>" not in block} - {*drafts}
    return "\n".join(blocks[place] for place in sorted(found | helpers))


def _gives(text: str, name: str) -> bool:
    r"""Return whether the text defines the name by more than a head and a docstring.

    Example:
        >>> _gives("def f(x):\n    '''Twice x.'''\n", "f"), _gives("def f(x): return 2 * x", "f")
        (False, True)
    """
    pattern = rf"^(?:async[ \t]+)?def[ \t]+{re.escape(name)}\b(.*(?:\n(?:[ \t\r)\]}}].*)?)*)"
    functions = re.findall(pattern, _LONG_STRING.sub("", text), re.MULTILINE)
    return any(map(_has_body, functions)) if functions else defines(text, [name])


def _has_body(function: str) -> bool:
    lines = [line for line in map(str.strip, function.splitlines()) if line]
    ends = [line.partition("#")[0].rstrip().endswith(":") for line in lines]
    body = lines[ends.index(True) + 1 :] if True in ends else [line.rpartition(":")[2].strip() for line in lines[-1:]]
    return not all(map(_NO_BODY.fullmatch, body))


def _body(text: str, blocks: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the block that continues the prompt: the first of a text that begins with it, or the only one behind
    prose.
    """
    opens = text.lstrip().startswith(("```", "~~~"))
    if not opens and not _PROSE.match(text.lstrip("\r\n")):
        return None
    found = [block for block in blocks if not _PROSE.match(block) and ">>>" not in block and not defines(block, names)]
    return found[0] if found and (opens or len(found) == 1) else None


def _shifted(body: str, margin: str) -> str:
    """Indent a body that stands at the left margin, but not one of which the first line alone does."""
    text = dedent(body)
    first, *rest = [line.rstrip() for line in text.splitlines() if line.strip()] or [""]
    inside = margin + " " if first.endswith(":") else margin
    stays = not rest or (rest[0].startswith(inside) and all(line.startswith(margin) for line in rest))
    return body if stays else indent(text, margin)


def _indented(text: str) -> bool:
    return text.lstrip("\r\n")[:1].isspace()


def _without_prose(text: str) -> str:
    lines = text.splitlines(keepends=True)
    prose = [bool(line.strip() and _PROSE.match(line)) for line in lines]
    begin = next((n for n, line in enumerate(lines) if line.strip() and not prose[n]), 0)
    end = next((n for n in range(begin, len(lines)) if prose[n]), len(lines))
    return "".join(lines[begin:end])


def completed(prompt: str, names: Sequence[str]) -> str:
    r"""Return the prompt as a program: a function that it leaves open gets a body.

    Example:
        >>> completed("def f(x):\n", ["f"]), completed("def f(x): return x", ["f"])
        ('def f(x):\n\n    pass\n\n', 'def f(x): return x\n')
    """
    last = prompt.rstrip().rpartition("\n")[2]
    if defines(prompt, names) and (last[:1].isspace() or last.endswith(":")):
        return f"{prompt}\n{_margin(prompt)}pass\n\n"
    return f"{prompt}\n" if prompt else ""


def _margin(prompt: str) -> str:
    """Return the indentation of the body that the prompt begins."""
    last = prompt.rstrip().rpartition("\n")[2]
    return last[: len(last) - len(last.lstrip())] or "    "


def _aligned(prompt: str, text: str, names: Sequence[str]) -> str:
    """Give the first line the indentation that decoders strip."""
    line = text.lstrip("\r\n")
    if not (prompt.endswith("\n") or len(line) < len(text)) or not defines(prompt, names):
        return text
    indent, margin = line[: len(line) - len(line.lstrip(" "))], _margin(prompt)
    return text[: len(text) - len(line)] + margin + line[len(indent) :] if len(indent) < len(margin) else text
