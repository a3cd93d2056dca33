"""The steps of a turn by name, so that a test can make each of them crash, hang or raise.

The loop and the checkpoints call an injected `StepHook` with a step's name just before it is done. Production
injects one that does nothing: there is no setting for it.
"""

from collections.abc import Callable

#: Every step in the order of a turn: its number in `Loop.turn`, and what is done.
STEPS = {
    "poll": "1: a bounded batch is polled",
    "parse": "2: messages are parsed; those that are no clicks become dead letters",
    "learn": "3: a micro-batch is scored and learned, and lists are ranked",
    "lists": "4: its lists are written",
    "shadow": "5: the shadow learns it too, and drift is checked",
    "items": "6: item updates are applied",
    "offsets": "7: the next offsets are noted",
    "refresh": "8: lists that have aged, and those that Redis refused, are written",
    "decide": "9: which version serves is decided, and a slice of fine-tuning done",
    "dead_letters": "10: dead letters are flushed",
    "checkpoint": "10: the checkpoint's folder is made",
    "checkpoint_link": "10: an increment gets the full one's file, and its arrays are written",
    "checkpoint_state": "10: its state is written",
    "checkpoint_manifest": "10: its manifest is written, and everything is synced",
    "checkpoint_rename": "10: it gets its final name",
    "checkpoint_clean": "10: older ones are removed",
    "commit": "10: the offsets are committed",
}

#: The steps at which a worker of a group shares, all within step 9.
SHARED_STEPS = {
    "share_read": "what the others have shared is read",
    "share_change": "what the weights have learned is sent",
    "share_base": "the next base is sent, or the whole one to a worker that lacks it",
    "share_version": "the news of a version is sent",
    "share_replacement": "the base with that version's weights is sent",
    "share_reaction": "the news of a reaction to drift is sent",
    "train_again": "clicks that a former owner has not shared are trained",
}

StepHook = Callable[[str], None]


def no_hook(step: str) -> None:
    """Does nothing; production injects it."""
