"""Settings that libraries read from the environment when they are first imported."""

from __future__ import annotations

import os

_SETTINGS = {
    # Idle threads sleep instead of spinning. On a machine that does anything else at the same time, spinning threads of
    # torch made training five times slower; on an idle one there is no difference to see.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",  # work is spread over processes, and the library warns when both are on
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def prepare() -> None:
    """Set what the user has not set. Call it before torch, tokenizers or huggingface_hub are imported."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
