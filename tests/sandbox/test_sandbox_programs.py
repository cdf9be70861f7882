"""From completions to programs."""

from textwrap import dedent, indent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.sandbox.programs import completed, extract_program, until_stop

STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")
PROMPT = '''import math


def helper(x):
    return x + 1


def area(r):
    """The area.
    >>> area(0)
    0.0
    """
'''
BODY = "    return helper(math.pi * r * r) - 1\n"
WHOLE = "def area(r):\n" + BODY
LONG_BODY = "    for _ in range(2):\n        if r:\n            r = r * 1\n" + BODY
WRONG = "def area(r):\n    return 0\n"
RIGHT = {
    "continuation": BODY,
    "continuation that goes on": BODY + "\n\ndef area(r):\n    return 0\n",
    "continuation with a call": BODY + "\nprint(area(1))\n",
    "continuation with a main part": BODY + "\nif __name__ == '__main__':\n    input()\n",
    "continuation with a comment": BODY + "\n# nonsense (\n",
    "continuation in a page": BODY + "```\n\nThat is all.",
    "blank line first": "\n" + BODY,
    "stripped continuation": BODY.strip(),
    "stripped continuation of two lines": "r = r * 1\n" + BODY,
    "one blank lost": BODY[1:],
    "one blank lost of two lines": "   r = r * 1\n" + BODY,
    "whole": WHOLE,
    "whole with import": "import math\nfrom typing import List\n\n" + WHOLE,
    "whole with helper": "def other(r):\n    return r\n\n" + WHOLE.replace("r * r", "r * other(r)"),
    "whole with helper behind": WHOLE.replace("r * r", "r * other(r)") + "\ndef other(r):\n    return r\n",
    "whole with prose": "Here it is:\n\n" + WHOLE + "\nThis returns the area of a circle.\n",
    "whole as a lambda": "area = lambda r: helper(math.pi * r * r) - 1",
    "fenced": f"```python\n{WHOLE}```",
    "fenced with prose": f"Sure!\n\n```python\n{WHOLE}```\n\nIt's right because `area(0)` is 0.",
    "fenced without language": f"```\n{WHOLE}```",
    "fenced with tildes": f"~~~py\n{WHOLE}~~~",
    "fence that is not closed": f"Sure:\n```python\n{WHOLE}",
    "second block": f"Install:\n```bash\npip install numpy\n```\nThen:\n```python\n{WHOLE}```",
    "import in a block of its own": f"```python\nimport cmath as own\n```\nThen:\n```python\n{WHOLE}    own.pi\n```",
    "helper in a block of its own": "First:\n```python\ndef other(r):\n    return r\n```\nThen:\n```python\n"
    + WHOLE.replace("r * r", "r * other(r)") + "```",
    "example in a block of its own": f"For\n```python\n>>> area(0)\n0.0\n```\nwrite\n```python\n{WHOLE}```",
    "call in a block of its own": f"So that\n```python\nprint(area(1))\n```\nworks:\n```python\n{WHOLE}```",
    "last of two blocks": f"```python\n{WRONG}```\nNo, rather:\n```python\n{WHOLE}```",
    "block behind the head": f"Head:\n```python\n{PROMPT}```\nAll:\n```python\n{WHOLE}```",
    "block before the head": f"```python\n{WHOLE}```\nwhich has the head\n```python\ndef area(r):\n    ...\n```",
    "block before a call": f"```python\n{WHOLE}```\nas in\n```python\nprint(area(1))\n```",
    "draft that is no program": f"```python\nimport nothing\n{WRONG}```\nNo:\n```python\n{WHOLE}```",
    "behind a thought": f"<think>\nPerhaps\n```python\n{WRONG}```\n</think>\n\n```python\n{WHOLE}```",
    "behind a thought that the prompt begins": f"Perhaps\n```python\n{WRONG}```\n</think>\n{WHOLE}",
    "continuation behind a thought": f"<think>Hm.</think>\n{BODY}",
    "before a thought without end": f"```python\n{WHOLE}```\n<think>\nOr\n```python\n{WRONG}```",
    "head in two lines": "```python\ndef area(\n    r: float,  # radius\n) -> float:\n" + BODY + "```",
    "indented block": "1. So:\n\n" + "".join(f"   {line}\n" for line in f"```python\n{WHOLE}```".splitlines()),
    "fenced body": f"```python\n{BODY}```",
    "fenced body behind prose": f"The body is\n\n```python\n{BODY}```",
    "fenced body behind the head": f"```python\n{PROMPT}```\ngoes on\n```python\n{BODY}```",
    "fenced body behind a command": f"First\n```bash\npip install nothing\n```\nthen\n```python\n{BODY}```",
    "fenced body at the left": f"```python\n{dedent(LONG_BODY)}```",
    "fenced body at the left behind prose": f"Well:\n```python\n{dedent(LONG_BODY)}```",
    "fenced body of two lines, stripped": f"```python\n{LONG_BODY.strip()}\n```",
    "fenced body in a list": "1. So:\n" + indent(f"```python\n{LONG_BODY}```", "    "),
    "continuation that names two": "    r, s = r, r\n    return helper(math.pi * r * s) - 1\n```\nThat is all.",
    "stripped continuation that names two": "r, s = r, r\n    return helper(math.pi * r * s) - 1\n```\nDone.",
    "fenced, from the future": f"```python\nfrom __future__ import annotations\nimport math\nhelper = abs\n{WHOLE}"
    "    pass\n```".replace(" - 1", ""),
    "windows line ends": f"```python\r\n{WHOLE}```\r\n".replace("\n", "\r\n").replace("\r\r", "\r"),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_what_was_meant_is_found(name):
    space = {"__name__": "solution"}
    exec(extract_program(PROMPT, RIGHT[name], ["area"], STOP), space)
    assert space["area"](2) == pytest.approx(12.566370614)


def test_each_name_is_taken_from_the_last_block_that_defines_it():
    blocks = ["class Pair:\n    x = 1", "def most(): return 0", "print(most())", "def most(): return Pair.x"]
    text = "\n".join(f"So:\n```python\n{block}\n```" for block in blocks)
    space = {}
    exec(extract_program("", text, ["Pair", "most"], STOP), space)
    assert space["most"]() == 1


@pytest.mark.parametrize(
    "text",
    [
        "I cannot do that.",
        "",
        "```python\n```",
        "    return 1 +\n",
        "```python\ndef other(): pass\n```",
        f"<think>\n```python\n{WHOLE}```\n",
        f"<think>\n```python\n{WHOLE}```\n</think>\nI cannot do that.",
        f"```python\n{PROMPT}```",
        "```python\ndef area(r):\n    pass\n```",
    ],
)
def test_no_program_is_invented(text):
    space = {}
    try:
        exec(extract_program(PROMPT, text, ["area"], STOP), space)
    except SyntaxError:
        return
    assert space["area"](2) is None


def test_without_a_prompt_the_text_is_the_program():
    assert extract_program("", "x = 1\ndef f(): ...\nassert f()", ["f"], ["\nassert"]).strip() == "x = 1\ndef f(): ..."


def test_an_open_function_gets_a_body():
    space = {}
    exec(completed(PROMPT, ["area"]), space)
    assert space["area"](1) is None
    assert space["helper"](1) == 2


@given(st.text("ab\n#"), st.lists(st.sampled_from(["\n#", "ab", "b\n"]), max_size=3))
def test_a_cut_text_is_the_longest_beginning_without_a_stop_string(text, stop):
    kept = until_stop(text, stop)
    assert text.startswith(kept)
    assert not any(end in kept for end in stop)
    assert kept == text or any(end in text[: len(kept) + max(map(len, stop))] for end in stop)


@given(st.text(st.characters() | st.sampled_from("`~\n \tdef:#")), st.sampled_from(["", PROMPT]))
def test_any_text_is_taken(text, prompt):
    assert isinstance(extract_program(prompt, text, ["area"], STOP), str)
