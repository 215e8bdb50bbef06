"""Cron expressions as KFP reads them: six fields, the first of them seconds.

The five fields that everybody writes are accepted and get a second 0. What KFP would refuse is refused here, with the
field that is wrong; what it would take and never run (30 February) is refused too.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from multimodal_gemma.errors import InputError

# fmt: off
_MONTHS = {"JAN": 1, "FEB": 2, "MAR": 3, "APR": 4, "MAY": 5, "JUN": 6,
           "JUL": 7, "AUG": 8, "SEP": 9, "OCT": 10, "NOV": 11, "DEC": 12}
_DAYS = {"SUN": 0, "MON": 1, "TUE": 2, "WED": 3, "THU": 4, "FRI": 5, "SAT": 6}
# fmt: on
_FIELDS: list[tuple[str, int, int, dict[str, int]]] = [
    ("second", 0, 59, {}),
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 6, _DAYS),
]
_SPOKEN = {
    "@hourly": "0 0 * * * *",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@weekly": "0 0 0 * * 0",
    "@monthly": "0 0 0 1 * *",
    "@yearly": "0 0 0 1 1 *",
}
_HORIZON = 366 * 5  # days: a leap day comes within them (but for the turn of a century)


def normal(text: str) -> str:
    """Return the expression with six fields.

    Args:
        text: five or six fields, or a word such as @daily.

    Raises:
        InputError: it is no cron expression, or it never comes.
    """
    fields = _SPOKEN.get(text.strip(), text).split()
    if len(fields) == 5:
        fields = ["0", *fields]
    if len(fields) != 6:
        raise InputError(
            f"schedule: {text!r} is no cron expression. Give five fields (minute, hour, day of month, month, day of "
            "week), e.g. '0 3 * * 1' for Mondays at 3:00, or six with the second first, as KFP has them."
        )
    for field, (name, low, high, words) in zip(fields, _FIELDS, strict=True):
        try:
            _values(field, low, high, words)
        except ValueError as error:
            hint = " Sunday is 0." if name == "day of week" and "7" in field else ""
            raise InputError(
                f"schedule: {text!r} is no cron expression: {field!r} is no {name} ({error}).{hint}"
            ) from None
    cron = " ".join(fields)
    if next(coming(cron, datetime.datetime.now(datetime.UTC)), None) is None:
        raise InputError(f"schedule: {text!r} never comes: no such day of that month exists. Check the two fields.")
    return cron


def coming(cron: str, after: datetime.datetime) -> Iterator[datetime.datetime]:
    """Yield the moments at which a six-field expression comes, in the zone of `after`."""
    seconds, minutes, hours, days, months, weekdays = (
        sorted(_values(field, low, high, words))
        for field, (_, low, high, words) in zip(cron.split(), _FIELDS, strict=True)
    )
    day_field, weekday_field = cron.split()[3], cron.split()[5]
    either = not (_starred(day_field) or _starred(weekday_field))  # two restrictions: one of them is enough
    for offset in range(_HORIZON):
        day = after.date() + datetime.timedelta(days=offset)
        of_month, of_week = day.day in days, (day.weekday() + 1) % 7 in weekdays
        if day.month not in months or not (of_month or of_week if either else of_month and of_week):
            continue
        for hour in hours:
            for minute in minutes:
                for second in seconds:
                    moment = datetime.datetime(day.year, day.month, day.day, hour, minute, second, tzinfo=after.tzinfo)
                    if moment > after:
                        yield moment


def _starred(field: str) -> bool:
    return field[:1] in ("*", "?")


def _values(field: str, low: int, high: int, words: dict[str, int]) -> set[int]:
    found: set[int] = set()
    for part in field.split(","):
        span, slash, step_text = part.partition("/")
        step = int(step_text) if slash else 1
        if step < 1:
            raise ValueError(f"a step of {step}")
        if span in ("*", "?"):
            first, last = low, high
        else:
            first_text, dash, last_text = span.partition("-")
            first = _number(first_text, words)
            last = _number(last_text, words) if dash else (high if slash else first)
        if not low <= first <= last <= high:
            raise ValueError(f"it goes from {low} to {high}")
        found |= set(range(first, last + 1, step))
    return found


def _number(text: str, words: dict[str, int]) -> int:
    if text.upper() in words:
        return words[text.upper()]
    if not text.isdigit():
        raise ValueError(f"{text!r} is no number")
    return int(text)
