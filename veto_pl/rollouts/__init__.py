"""Who writes the completions, and how the next token is drawn."""

from veto_pl.rollouts.sampling import Sampling
from veto_pl.rollouts.sources import FromDataset, FromStudent, FromTeacher, Mixture, TeacherMixed

__all__ = ["FromDataset", "FromStudent", "FromTeacher", "Mixture", "Sampling", "TeacherMixed"]
