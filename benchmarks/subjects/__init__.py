"""Who is measured: an adapter per library, set up for speed as its documentation advises, and the list of them.
Imports suite and machine; measure, report, gpu, tools and the command line may import it."""

from benchmarks.subjects.registry import SUBJECTS, again, select
from benchmarks.subjects.spec import Spec

__all__ = ["SUBJECTS", "Spec", "again", "select"]
