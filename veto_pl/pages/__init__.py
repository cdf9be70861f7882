"""HTML pages by jinja2: each is one file that needs nothing else."""

from veto_pl.pages.render import render, write_text

__all__ = ["render", "write_text"]
