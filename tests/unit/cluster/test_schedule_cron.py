"""Cron expressions: five fields and six, what never comes, and when the others do."""

from __future__ import annotations

import datetime
import itertools

import pytest

from multimodal_gemma.cluster.kfp.cron import coming, normal
from multimodal_gemma.errors import InputError

MONDAY = datetime.datetime(2026, 11, 23, 12, 0, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("0 3 * * 1", "0 0 3 * * 1"),
        ("30 0 3 * * 1", "30 0 3 * * 1"),
        ("  */15   * * * * ", "0 */15 * * * *"),
        ("@daily", "0 0 0 * * *"),
        ("0 3 ? JAN-MAR mon,fri", "0 0 3 ? JAN-MAR mon,fri"),
        ("0 0 29 2 *", "0 0 0 29 2 *"),
    ],
)
def test_five_fields_get_a_second(given: str, sent: str) -> None:
    assert normal(given) == sent


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "is no cron expression"),
        ("every monday", "is no cron expression"),
        ("0 3 * *", "Give five fields"),
        ("0 0 3 * * 1 2026", "Give five fields"),
        ("60 3 * * 1", "'60' is no minute (it goes from 0 to 59)"),
        ("0 24 * * *", "'24' is no hour"),
        ("0 3 0 * *", "'0' is no day of month"),
        ("0 3 * 13 *", "'13' is no month"),
        ("0 3 * * 7", "'7' is no day of week (it goes from 0 to 6). Sunday is 0."),
        ("0 3 * * mo", "'mo' is no number"),
        ("5-1 * * * *", "'5-1' is no minute"),
        ("*/0 * * * *", "a step of 0"),
        ("*/x * * * *", "is no minute"),
        ("1,,2 * * * *", "is no minute"),
        ("0 0 30 2 *", "never comes"),
    ],
)
def test_what_is_none_is_refused_with_the_field_that_is_wrong(given: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        normal(given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("cron", "moments"),
    [
        ("0 0 3 * * 1", ["2026-11-30 03:00:00", "2026-12-07 03:00:00"]),
        ("0 */20 * * * *", ["2026-11-23 12:20:00", "2026-11-23 12:40:00"]),
        ("10 59 23 31 * *", ["2026-12-31 23:59:10", "2027-01-31 23:59:10"]),
        ("0 0 0 29 2 *", ["2028-02-29 00:00:00"]),
        ("0 0 9 1 * MON", ["2026-11-30 09:00:00", "2026-12-01 09:00:00"]),  # two restrictions: either
        ("0 0 6-8/2 * * *", ["2026-11-24 06:00:00", "2026-11-24 08:00:00"]),
    ],
)
def test_the_coming_moments_are_those_of_the_calendar(cron: str, moments: list[str]) -> None:
    found = itertools.islice(coming(cron, MONDAY), len(moments))
    assert [f"{moment:%Y-%m-%d %H:%M:%S}" for moment in found] == moments
