"""From completions to programs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.sandbox.programs import completed, cut, extract_program

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
    "first of two blocks": f"```python\n{WHOLE}```\nor\n```python\ndef area(r): return 0\n```",
    "indented block": "1. So:\n\n" + "".join(f"   {line}\n" for line in f"```python\n{WHOLE}```".splitlines()),
    "fenced body": f"```python\n{BODY}```",
    "fenced, from the future": f"```python\nfrom __future__ import annotations\nimport math\nhelper = abs\n{WHOLE}"
    "    pass\n```".replace(" - 1", ""),
    "windows line ends": f"```python\r\n{WHOLE}```\r\n".replace("\n", "\r\n").replace("\r\r", "\r"),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_what_was_meant_is_found(name):
    space = {"__name__": "solution"}
    exec(extract_program(PROMPT, RIGHT[name], ["area"], STOP), space)
    assert space["area"](2) == pytest.approx(12.566370614)


@pytest.mark.parametrize(
    "text", ["I cannot do that.", "", "```python\n```", "    return 1 +\n", "```python\ndef other(): pass\n```"]
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
    kept = cut(text, stop)
    assert text.startswith(kept)
    assert not any(end in kept for end in stop)
    assert kept == text or any(end in text[: len(kept) + max(map(len, stop))] for end in stop)


@given(st.text(st.characters() | st.sampled_from("`~\n \tdef:#")), st.sampled_from(["", PROMPT]))
def test_any_text_is_taken(text, prompt):
    assert isinstance(extract_program(prompt, text, ["area"], STOP), str)
