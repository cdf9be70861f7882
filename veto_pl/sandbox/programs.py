"""From the text that a model wrote to the program that it means, by patterns only: a parser could be attacked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import dedent

_FENCED = re.compile(r"^[ \t]*(```|~~~)[^\n]*\n(.*?)(?:^[ \t]*\1|\Z)", re.MULTILINE | re.DOTALL)
_HELPERS = re.compile(r"\s*(?:import|from|def|class|async|@)\b")
_PROSE = re.compile(
    r"^(?!(?:import|from|def|class|async|if|elif|else|for|while|with|try|except|finally|return|pass|assert)\b"
    r"|[\s@#)\]}\"']|[A-Za-z_][\w.]*[ \t]*[=(\[+*/-])",
    re.MULTILINE,
)


def defines(text: str, names: Sequence[str]) -> bool:
    r"""Whether the text defines one of the names at its left margin.

    Example:
        >>> defines("import math\ndef area(r):\n    return 1", ["area"]), defines("  def area(): ...", ["area"])
        (True, False)
    """
    found = "|".join(map(re.escape, names))
    pattern = rf"^(?:(?:async[ \t]+)?def[ \t]+|class[ \t]+)(?:{found})\b|^(?:{found})[ \t]*="
    return re.search(pattern, text, re.MULTILINE) is not None


def cut(text: str, stop: Sequence[str]) -> str:
    r"""The text before the first of the strings.

    Example:
        >>> cut("    return 1\n\nprint(2)\ndef g(): ...", ["\ndef", "\nprint"])
        '    return 1\n'
    """
    ends = [place for end in stop if (place := text.find(end)) >= 0]
    return text[: min(ends, default=len(text))]


def extract_program(prompt: str, completion: str, names: Sequence[str], stop: Sequence[str]) -> str:
    r"""The program that a completion stands for.

    The first fenced block that defines one of the names is taken, behind earlier blocks of imports and definitions.
    Else an unfenced definition is taken, up to prose. Both stand behind the prompt, whose imports and helpers they may
    use. Any other text continues the prompt, up to a stop string.

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
    blocks = [match[2] for match in _FENCED.finditer(completion)]
    whole = _first_definition([dedent(block) for block in blocks], names)
    if whole is None and not blocks and not _indented(completion) and defines(completion, names):
        # Behind a function that the prompt has begun, these strings end it; here they may begin it.
        whole = cut(_without_prose(completion), () if defines(prompt, names) else stop)
    if whole is not None:
        # Nothing may stand before an import from the future.
        return whole if "from __future__" in whole else completed(prompt, names) + whole
    opens = completion.lstrip().startswith(("```", "~~~"))
    text = blocks[0] if blocks and opens else completion
    return prompt + _aligned(prompt, cut(text, stop), names)


def _first_definition(blocks: Sequence[str], names: Sequence[str]) -> str | None:
    place = next((place for place, block in enumerate(blocks) if defines(block, names)), None)
    if place is None:
        return None
    helpers = [block for block in blocks[:place] if _HELPERS.match(block) and ">>>" not in block]
    return "\n".join([*helpers, blocks[place]])


def _indented(text: str) -> bool:
    return text.lstrip("\r\n")[:1].isspace()


def _without_prose(text: str) -> str:
    lines = text.splitlines(keepends=True)
    prose = [bool(line.strip() and _PROSE.match(line)) for line in lines]
    begin = next((n for n, line in enumerate(lines) if line.strip() and not prose[n]), 0)
    end = next((n for n in range(begin, len(lines)) if prose[n]), len(lines))
    return "".join(lines[begin:end])


def completed(prompt: str, names: Sequence[str]) -> str:
    r"""The prompt as a program: a function that it leaves open gets a body.

    Example:
        >>> completed("def f(x):\n", ["f"]), completed("def f(x): return x", ["f"])
        ('def f(x):\n\n    pass\n\n', 'def f(x): return x\n')
    """
    last = prompt.rstrip().rpartition("\n")[2]
    if defines(prompt, names) and (last[:1].isspace() or last.endswith(":")):
        return f"{prompt}\n{_margin(prompt)}pass\n\n"
    return f"{prompt}\n" if prompt else ""


def _margin(prompt: str) -> str:
    """The indentation of the body that the prompt begins."""
    last = prompt.rstrip().rpartition("\n")[2]
    return last[: len(last) - len(last.lstrip())] or "    "


def _aligned(prompt: str, text: str, names: Sequence[str]) -> str:
    """Gives the first line the indentation that decoders strip."""
    line = text.lstrip("\r\n")
    if not (prompt.endswith("\n") or len(line) < len(text)) or not defines(prompt, names):
        return text
    indent, margin = line[: len(line) - len(line.lstrip(" "))], _margin(prompt)
    return text[: len(text) - len(line)] + margin + line[len(indent) :] if len(indent) < len(margin) else text
