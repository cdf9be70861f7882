"""A teacher's answers on disk: scored once, read in every epoch of every run."""

from veto_pl.offline.store import ScoreStore, open_store

__all__ = ["ScoreStore", "open_store"]
