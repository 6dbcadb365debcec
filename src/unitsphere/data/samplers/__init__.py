"""Which rows make a batch. A sampler's order is a function of the rows and a generator alone, so that a run can be
resumed, and the same on every rank, which takes its share of each batch."""

from unitsphere.data.samplers.base import Sampler
from unitsphere.data.samplers.class_balanced import ClassBalanced
from unitsphere.data.samplers.language_balanced import LanguageBalanced
from unitsphere.data.samplers.length_grouped import LengthGrouped
from unitsphere.data.samplers.mixed import Mixed
from unitsphere.data.samplers.no_duplicates import NoDuplicates
from unitsphere.data.samplers.shuffled import Shuffled
from unitsphere.data.samplers.task_homogeneous import TaskHomogeneous

__all__ = [
    "ClassBalanced",
    "LanguageBalanced",
    "LengthGrouped",
    "Mixed",
    "NoDuplicates",
    "Sampler",
    "Shuffled",
    "TaskHomogeneous",
]
