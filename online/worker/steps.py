"""The steps of a turn by name, so that a test can make each of them crash, hang or raise.

The loop and the checkpoints call an injected `StepHook` with a step's name just before it is done. Nobody looks in
production: there is no setting for it.
"""

from collections.abc import Callable

#: Every step in the order in which a turn comes to it, with its number in `Loop.turn`, and what follows.
STEPS = {
    "poll": "1: a bounded batch is polled",
    "parse": "2: clicks are told from what cannot be read, which is handed to the dead letters",
    "learn": "3: a micro-batch is scored and learned, and lists are ranked",
    "lists": "4: its lists are written",
    "shadow": "5: the shadow learns it too, and drift is looked for",
    "items": "5: items that came and went are taken in",
    "offsets": "5: the next offsets are noted",
    "refresh": "5: lists that have aged, or are behind, are written",
    "decide": "6: what is decided of the shadow, and a slice of fine-tuning",
    "dead_letters": "7: dead letters are flushed",
    "checkpoint": "7: the checkpoint's folder is made, and its arrays are written",
    "checkpoint_state": "7: its state is written",
    "checkpoint_manifest": "7: its manifest is written, and everything is synced",
    "checkpoint_rename": "7: it gets its final name",
    "checkpoint_clean": "7: older ones are removed",
    "commit": "7: the broker is told",
}

StepHook = Callable[[str], None]


def no_hook(step: str) -> None:
    """What production injects."""
