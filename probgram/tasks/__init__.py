"""Problem families: one file each, all of them a `Task`."""

from typing import TYPE_CHECKING

from probgram.lazy import lazy

if TYPE_CHECKING:
    from probgram.tasks.arc import Arc as Arc
    from probgram.tasks.colouring import Colouring as Colouring
    from probgram.tasks.digits import Digits as Digits
    from probgram.tasks.generation import Generation as Generation
    from probgram.tasks.pairs import Pairs as Pairs
    from probgram.tasks.permutations import Permutations as Permutations
    from probgram.tasks.pointers import Pointers as Pointers
    from probgram.tasks.queens import Queens as Queens
    from probgram.tasks.reachability import Reachability as Reachability
    from probgram.tasks.rule110 import Rule110 as Rule110
    from probgram.tasks.shifted import Shifted as Shifted
    from probgram.tasks.sudoku import Sudoku as Sudoku
    from probgram.tasks.task import KnownAnswers as KnownAnswers
    from probgram.tasks.task import Task as Task
    from probgram.tasks.task import UnknownAnswers as UnknownAnswers
    from probgram.tasks.task import from_name as from_name
    from probgram.tasks.task import group_answers as group_answers
    from probgram.tasks.task import separate_answers as separate_answers

_HOMES = {
    "Queens": "probgram.tasks.queens",
    "Pairs": "probgram.tasks.pairs",
    "Arc": "probgram.tasks.arc",
    "Digits": "probgram.tasks.digits",
    "Generation": "probgram.tasks.generation",
    "Colouring": "probgram.tasks.colouring",
    "Permutations": "probgram.tasks.permutations",
    "Pointers": "probgram.tasks.pointers",
    "Reachability": "probgram.tasks.reachability",
    "Rule110": "probgram.tasks.rule110",
    "Shifted": "probgram.tasks.shifted",
    "Sudoku": "probgram.tasks.sudoku",
    "Task": "probgram.tasks.task",
    "UnknownAnswers": "probgram.tasks.task",
    "KnownAnswers": "probgram.tasks.task",
    "group_answers": "probgram.tasks.task",
    "separate_answers": "probgram.tasks.task",
    "from_name": "probgram.tasks.task",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
