"""Turns what the package's docstrings write in LaTeX into MathML, which browsers show without scripts."""

import re

import griffe
from latex2mathml.converter import convert

ROLE = re.compile(r":math:`([^`]+)`", re.DOTALL)
DIRECTIVE = re.compile(r"^( *)\.\. math:: ?(.*(?:\n\1 +\S.*)*)", re.MULTILINE)
EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)


def mathml(latex: str, display: str) -> str:
    """Return the formula as one line of HTML in which Markdown finds nothing to change."""
    formula = convert(" ".join(latex.split()), display=display)
    for character in "*_[]`\\":
        formula = formula.replace(character, f"&#{ord(character)};")
    return f"<span>{formula}</span>"


class Docstrings(griffe.Extension):
    """Rewrites docstrings before mkdocstrings reads them as Markdown."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Convert formulas, and name the examples as the Google style of griffe does."""
        if obj.docstring is None:
            return
        text = DIRECTIVE.sub(lambda found: found[1] + mathml(found[2], "block"), obj.docstring.value)
        text = ROLE.sub(lambda found: mathml(found[1], "inline"), text)
        obj.docstring.value = EXAMPLE.sub(r"\1Examples:", text)
