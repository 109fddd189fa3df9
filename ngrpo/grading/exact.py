"""The name under which configurations of older runs have the grader; there is one grader, and one grammar of numbers."""

from ngrpo.grading.latex import Latex


class Exact(Latex):
    """As ngrpo.grading.latex.Latex."""
