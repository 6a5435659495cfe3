"""Problem families: one file each, all of them a `Task`."""

from typing import TYPE_CHECKING

from probgram.lazy import lazy

if TYPE_CHECKING:
    from probgram.tasks.pairs import Pairs as Pairs
    from probgram.tasks.queens import Queens as Queens
    from probgram.tasks.task import KnownAnswers as KnownAnswers
    from probgram.tasks.task import Task as Task
    from probgram.tasks.task import UnknownAnswers as UnknownAnswers
    from probgram.tasks.task import from_name as from_name
    from probgram.tasks.task import group_answers as group_answers

_HOMES = {
    "Queens": "probgram.tasks.queens",
    "Pairs": "probgram.tasks.pairs",
    "Task": "probgram.tasks.task",
    "UnknownAnswers": "probgram.tasks.task",
    "KnownAnswers": "probgram.tasks.task",
    "group_answers": "probgram.tasks.task",
    "from_name": "probgram.tasks.task",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
