"""Which of several algorithms is better in a world, and how sure is that? Seeds in groups until a test decides."""

from palaestra.comparison.arms import Arm, Function
from palaestra.comparison.running import Comparison, compare

__all__ = ["Arm", "Comparison", "Function", "compare"]
