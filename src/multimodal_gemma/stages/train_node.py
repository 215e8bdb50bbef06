"""What a node of a TrainJob runs: `python -m multimodal_gemma.stages.train_node s3://PLACE [FOLDER]`.

torchrun, with as many processes as the node has accelerators; nodes, ranks and the leading node's address come from the
variables that Kubeflow Trainer sets (PET_*). All it adds is its exit code: the cluster is told to give up on a user's
mistake (2) and to begin again after anything else, e.g. a node that was taken away (75).
"""

from __future__ import annotations

import sys

from multimodal_gemma.stages.component import INPUT_ERROR
from multimodal_gemma.training.failures import EXIT_CODE

_PROCESS = "multimodal_gemma.stages.train_rank"
_PATIENCE = 3600  # seconds for which a node waits for the others: theirs may still be fetching its image


def main(arguments: list[str]) -> int:
    """Run this node's processes to their end; return the exit code."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main(["--max-restarts=0", f"--rdzv-conf=timeout={_PATIENCE}", "-m", _PROCESS, *arguments])
    except SignalException:
        return EXIT_CODE
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        return next((code for code in (INPUT_ERROR, EXIT_CODE) if code in codes), 1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
