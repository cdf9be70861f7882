"""The completions of all methods, prompt by prompt, with the KL of each token coloured in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from veto_pl.compare.results import Answer, Comparison, Trial
from veto_pl.report.heat import Scale, tokens_html
from veto_pl.report.marks import Mark
from veto_pl.report.markup import escape, visible
from veto_pl.report.table import number

PROMPTS = 24
"""The most prompts that are shown."""
_TOKENS = 12_000  # on the whole page: each takes some 100 bytes
_LONGEST = 4_000  # characters of a prompt
_KINDS = {"f": "forward KL", "r": "reverse KL"}


def answers_html(comparison: Comparison) -> str:
    """One prompt at a time, the answers of all methods side by side, and which KL is coloured in.

    All answers are of one seed: the first of those that most methods finished.
    """
    trials = _one_seed(comparison)
    count = min(max((len(trial.answers) for trial in trials.values()), default=0), PROMPTS)
    if not count:
        return ""
    scales = _scales([answer for trial in trials.values() for answer in trial.answers[:count]])
    limit = max(40, _TOKENS // (count * len(trials)))
    cards = "".join(_card(comparison, trials, j, scales, limit) for j in range(count))
    seed = next(iter(trials.values())).seed
    note = f'<p class="note">Test rows as answered by the runs of seed {seed}.</p>\n'
    return f"{note}{_colours(scales)}{_prompts(count)}{cards}"


def _one_seed(comparison: Comparison) -> dict[str, Trial]:
    """Method -> its trial of the seed that most methods have answers of."""
    known = [trial for trial in comparison.trials if trial.answers]
    seeds = Counter(trial.seed for trial in known)
    if not seeds:
        return {}
    best = max(comparison.seeds, key=lambda seed: (seeds[seed], -comparison.seeds.index(seed)))
    return {trial.method: trial for trial in known if trial.seed == best}


def _scales(answers: Sequence[Answer]) -> list[Scale]:
    values = {
        "f": [value for answer in answers for value in answer.forward_kl],
        "r": [value for answer in answers for value in answer.reverse_kl],
    }
    return [Scale.of(_KINDS[letter], letter, numbers) for letter, numbers in values.items() if numbers]


def _colours(scales: Sequence[Scale]) -> str:
    if not scales:
        return '<p class="note">The answers come without the KL of their tokens.</p>\n'
    names = {scale.letter: scale.name for scale in scales} | {"none": "none"}
    legends = "".join(scale.legend() for scale in scales)
    return _choice("Colour of the tokens", "kl", names) + legends


def _prompts(count: int) -> str:
    return _choice("Prompt", "prompt", {str(j): str(j + 1) for j in range(count)}) if count > 1 else ""


def _choice(legend: str, name: str, options: dict[str, str]) -> str:
    inputs = "".join(
        f'<label><input type="radio" name="{name}" id="{name}-{value}"{" checked" if i == 0 else ""}> {text}</label>\n'
        for i, (value, text) in enumerate(options.items())
    )
    return f'<fieldset class="choice">\n<legend>{legend}</legend>\n{inputs}</fieldset>\n'


def _card(comparison: Comparison, trials: dict[str, Trial], j: int, scales: Sequence[Scale], limit: int) -> str:
    answers = {method: trial.answers[j] for method, trial in trials.items() if j < len(trial.answers)}
    first = next(iter(answers.values()))
    columns = "".join(_columns(comparison, answers, scales, limit))
    reference = "" if first.reference is None else _labelled("Reference", first.reference)
    return (
        f'<article class="prompt prompt-{j}">\n{_labelled(f"Prompt {j + 1}", first.prompt)}{reference}'
        f'<div class="answers">\n{columns}</div>\n</article>\n'
    )


def _columns(comparison: Comparison, answers: dict[str, Answer], scales: Sequence[Scale], limit: int) -> Iterator[str]:
    for i, method in enumerate(comparison.methods):
        body = _answer(answers[method], scales, limit) if method in answers else '<p class="note">No answer.</p>\n'
        yield f'<div class="m{i}">\n<h3>{Mark(i).inline()} <bdi>{escape(method)}</bdi></h3>\n{body}</div>\n'


def _answer(answer: Answer, scales: Sequence[Scale], limit: int) -> str:
    kind, verdict = ("correct", "✓ correct") if answer.reward >= 1 else ("other", "○ not correct")
    numbers = {"f": answer.forward_kl, "r": answer.reverse_kl}
    values = {scale: numbers[scale.letter] for scale in scales}
    length = f"{len(answer.tokens):,} {'token' if len(answer.tokens) == 1 else 'tokens'}"
    return (
        f'<div class="completion {kind}"><p class="verdict">{verdict}, reward {number(answer.reward)}, {length}</p>\n'
        f"{tokens_html(answer.tokens, values, limit=limit)}</div>\n"
    )


def _labelled(label: str, text: str) -> str:
    more = f' <span class="note">… {len(text) - _LONGEST:,} more characters</span>' if len(text) > _LONGEST else ""
    return f'<p class="label">{label}</p>\n<div class="text" dir="auto">{visible(text[:_LONGEST])}{more}</div>\n'
