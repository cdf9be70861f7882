"""The table of sample completions on the terminal."""

from types import SimpleNamespace

import pytest

from veto_pl.callbacks import SampleTable

WHOLE = ["system: a [b]", "Ann has it, she", "Ann", "0.5"]


@pytest.mark.parametrize(("width", "expected"), [(20, WHOLE), (11, ["…tem: a [b]", "Ann has it…", *WHOLE[2:]])])
def test_it_shows_the_end_of_a_prompt_and_the_beginning_of_an_answer(width, expected, capsys):
    """What the prompts of conversations have in common stands at their beginning."""
    table = SampleTable(width=width)
    table._rows = [dict(zip(("prompt", "completion", "reference"), WHOLE, strict=False)) | {"reward": 0.5}]
    table.on_validation_end(SimpleNamespace(global_step=3, loggers=[]), SimpleNamespace(steps_done=3))
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "0.5" in line]
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == expected


def test_of_an_episode_it_shows_turns_and_replies(capsys):
    lines = [
        {"role": "user", "content": "the question"},
        {
            "role": "assistant",
            "content": "",
            "turn": 1,
            "counts": True,
            "calls": [{"name": "f", "arguments": {"a": 1}}],
        },
        {"role": "tool", "content": "x" * 50, "turn": 1},
        {"role": "assistant", "content": "done", "turn": 2, "counts": True},
    ]
    given = []
    logger = SimpleNamespace(
        log_table=lambda name, columns, data, step: given.append(dict(zip(columns, *data, strict=True)))
    )
    table = SampleTable(width=10)
    table._rows = [{"prompt": "p", "completion": "done", "reference": None, "reward": 1.0, "dialogue": lines}]
    table.on_validation_end(SimpleNamespace(global_step=3, loggers=[logger]), SimpleNamespace(steps_done=3))
    assert given[0]["completion"] == f'assistant: → f({{"a": 1}})\ntool: {"x" * 50}\nassistant: done'
    shown = capsys.readouterr().out
    assert "tool: xxxxxxxxx…" in shown
    assert "the question" not in shown


def test_of_a_debate_it_shows_weights_and_no_texts(capsys):
    said = {
        "maths": [{"turn": 1, "texts": ["It is [7]."], "confidence": 0.9, "weight": 0.645656}],
        "words": [{"turn": 1, "texts": [], "confidence": None, "weight": 0.0, "out": "silent"}],
    }
    given = []

    def log_table(name, columns, data, step):
        given.extend(dict(zip(columns, row, strict=True)) for row in data)

    table = SampleTable()
    row = {"prompt": "p", "completion": "7", "reference": None, "reward": 1.0}
    table._rows = [row | {"said": said}, row]
    logger = SimpleNamespace(log_table=log_table)
    table.on_validation_end(SimpleNamespace(global_step=3, loggers=[logger]), SimpleNamespace(steps_done=3))
    told = ["maths: turn 1, confidence 0.9, weight 0.6457", "words: turn 1, weight 0, out silent"]
    assert [one["teachers"] for one in given] == ["\n".join(told), ""]
    shown = capsys.readouterr().out
    assert "0.6457" in shown
    assert "It is" not in shown
