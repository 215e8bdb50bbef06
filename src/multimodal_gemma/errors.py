"""The one exception that speaks to a person.

Everything a user can get wrong ends as an `InputError` whose message is a sentence: what, where, what to do.
The command line prints it and exits with 2; nothing else in the project catches broadly.
"""


class InputError(Exception):
    """A mistake in what the user gave: one clear sentence, no traceback, exit code 2."""


class Outage(InputError):
    """A server that does not answer: named wrongly, or away for a while; a task's work is tried again."""


class Unusable(Exception):
    """Why a picture or a conversation cannot be used: recorded and left out, never replaced.

    Attributes:
        kind: the reason as a word to count by, e.g. "corrupt".
        reason: the reason in words for a person, with its figures.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason
