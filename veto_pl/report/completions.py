"""What the runs wrote last, prompt by prompt, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from veto_pl.report.marks import Mark
from veto_pl.report.markup import escape, tab_stop, visible
from veto_pl.report.run import Run, Sample
from veto_pl.report.table import number


def completions_html(runs: Sequence[Run], *, limit: int = 24) -> str:
    """One card per prompt, prompts that more runs answered first, with each run's completions of its last step.

    Args:
        runs: in the order of their colours.
        limit: number of prompts to show.

    Returns:
        HTML, empty if no run has samples.
    """
    answers: dict[str, dict[str, list[Sample]]] = {}
    for run in runs:
        for sample in run.last_samples:
            answers.setdefault(sample.prompt, {}).setdefault(run.name, []).append(sample)
    prompts = sorted(answers, key=lambda prompt: -len(answers[prompt]))
    note = f'<p class="note">{limit} of {len(prompts)} prompts.</p>\n' if len(prompts) > limit else ""
    return note + "".join(_card(prompt, answers[prompt], runs) for prompt in prompts[:limit])


def _card(prompt: str, answers: dict[str, list[Sample]], runs: Sequence[Run]) -> str:
    references = dict.fromkeys(s.reference for samples in answers.values() for s in samples if s.reference is not None)
    reference = "".join(_labelled("Reference", text) for text in references)
    columns = "".join(_column(run, Mark(i), answers.get(run.name, [])) for i, run in enumerate(runs))
    return f'<article>\n{_labelled("Prompt", prompt)}{reference}<div class="answers">\n{columns}</div>\n</article>\n'


def _column(run: Run, mark: Mark, samples: Sequence[Sample]) -> str:
    step = f' <span class="note">step {samples[0].step:,}</span>' if samples else ""
    body = "".join(_completion(sample) for sample in samples) or '<p class="note">No completion of this prompt.</p>'
    return f"<div>\n<h3>{mark.inline()} {escape(run.name)}{step}</h3>\n{body}</div>\n"


def _completion(sample: Sample) -> str:
    kind, verdict = ("correct", "✓ correct") if sample.is_correct else ("other", "○ not correct")
    return (
        f'<div class="completion {kind}"><p class="verdict">{verdict}, reward {number(sample.reward)}</p>\n'
        f'<div class="text"{tab_stop(sample.completion)}>{visible(sample.completion)}</div></div>\n'
    )


def _labelled(label: str, text: str) -> str:
    # Not `<pre>`, which swallows a line feed at its start.
    return f'<p class="label">{label}</p>\n<div class="text">{visible(text)}</div>\n'
