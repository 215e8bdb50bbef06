"""How a model is loaded to be asked."""

import pytest
import torch

from multimodal_gemma.evaluation import loading


@pytest.mark.parametrize(("parameters", "threads"), [(1_000, 1), (30_000_000, 2)])
def test_a_miniature_is_not_slowed_down_by_idle_threads(parameters: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        made = torch.nn.Module()
        made.weight = torch.nn.Parameter(torch.empty(parameters))
        made.device = torch.device("cpu")
        with loading.threads_for(made):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
