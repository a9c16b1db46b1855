"""The families. A new one is a folder, and its FAMILY in this tuple: nothing else names it."""

from .family import Family
from .hart.family import FAMILY as HART
from .infinity.family import FAMILY as INFINITY
from .switti.family import FAMILY as SWITTI
from .var.family import FAMILY as VAR

FAMILIES: tuple[Family, ...] = (VAR, INFINITY, HART, SWITTI)

__all__ = ["FAMILIES", "Family"]
