"""Settings that libraries read from the environment when they are first imported."""

from __future__ import annotations

import os

from multimodal_gemma.errors import InputError

_SETTINGS = {
    # Idle threads sleep instead of spinning. On a machine that does anything else at the same time, spinning threads of
    # torch made training five times slower; on an idle one there is no difference to see.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",  # work is spread over processes, and the library warns when both are on
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


# What a Secret or a shell may hand over with a line break at its end; libraries then print it in their errors.
CREDENTIALS = (
    "HF_TOKEN", "KFP_TOKEN", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD",
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY",
)  # fmt: skip


def prepare() -> None:
    """Set what the user has not set. Call it before torch, tokenizers or huggingface_hub are imported.

    Raises:
        InputError: a credential holds a line break in its middle; one at its end is removed.
    """
    for name in CREDENTIALS:
        if name not in os.environ:
            continue
        os.environ[name] = os.environ[name].strip("\r\n")
        if set(os.environ[name]) & {"\r", "\n"}:
            raise InputError(f"environment: {name} holds a line break, so it is no credential. Set it again.")
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
