"""The search for the token budget: what a GPU would answer is played, the decisions are worked by hand."""

from __future__ import annotations

import pytest

from multimodal_gemma.errors import InputError
from multimodal_gemma.training import budget


def memory_of(limit: int):
    """A GPU that takes a byte a position and has no more than `limit` of them."""
    return lambda positions: float(positions) if positions <= limit else None


@pytest.mark.parametrize(
    ("longest", "room", "found"),
    [
        (100, 1000.0, 800),  # 100, 200, 400, 800 fit, 1600 does not, and neither does 1200
        (100, 1300.0, 1200),  # halfway to the next doubling still fits
        (100, 100.0, 100),
    ],
)
def test_the_budget_grows_until_the_room_is_taken(longest: int, room: float, found: int) -> None:
    assert budget._largest(memory_of(10_000), longest, room) == found


def test_a_pass_that_runs_out_of_memory_ends_the_search() -> None:
    assert budget._largest(memory_of(450), 100, 1e9) == 400


def test_a_conversation_that_fits_nowhere_is_said() -> None:
    with pytest.raises(InputError, match=r"not even one conversation of 100 positions fits .*gradient_checkpointing"):
        budget._largest(memory_of(50), 100, 1e9)


def test_a_tiny_model_on_a_large_gpu_stops_somewhere() -> None:
    assert budget._largest(memory_of(10**9), 1000, 1e12) <= budget.LARGEST
