"""Which container image a component runs in.

Chosen when a pipeline is compiled: `IMAGE_REGISTRY` and `IMAGE_TAG` name the images, and a digest in
`IMAGE_DIGEST_PIPELINE` or `IMAGE_DIGEST_TRAINER` pins one of them to its very bytes. `IMAGE_DIGESTS` names the
file in which `make push` noted what a registry stored; it pins both, unless `IMAGE_TAG` asks for a tag.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from kfp import dsl

from multimodal_gemma import __version__
from multimodal_gemma.errors import InputError

DEFAULT_REGISTRY = "ghcr.io/multimodal-gemma"
Kind = Literal["pipeline", "trainer"]  # pipeline: CPU; trainer: CUDA


def image_of(kind: Kind) -> str:
    """Return the image reference of one kind of component, by digest if one is given, else by tag.

    Raises:
        InputError: the tag moves (`latest`), the digest is none, or the file of digests does not hold this kind's.
    """
    registry = os.environ.get("IMAGE_REGISTRY") or DEFAULT_REGISTRY
    variable = f"IMAGE_DIGEST_{kind.upper()}"
    digest = os.environ.get(variable)
    if digest:
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            raise InputError(f"compile: {variable}={digest!r} is no digest. Give sha256: and 64 hexadecimal digits.")
        return f"{registry}/{kind}@{digest}"
    tag = os.environ.get("IMAGE_TAG")
    if not tag and (noted := os.environ.get("IMAGE_DIGESTS")):
        return _noted(Path(noted), kind)
    tag = tag or __version__
    if tag == "latest":
        raise InputError("compile: IMAGE_TAG=latest names another image every day. Give a version or a digest.")
    return f"{registry}/{kind}:{tag}"


def _noted(path: Path, kind: Kind) -> str:
    try:
        image = json.loads(path.read_text(encoding="utf-8"))[kind]
    except (OSError, ValueError, KeyError, TypeError):
        image = ""
    if not re.fullmatch(r"[^@\s]+@sha256:[0-9a-f]{64}", str(image)):
        raise InputError(f"compile: {path} names no {kind} image by digest. Write it with make push, or set IMAGE_TAG.")
    return str(image)


def component_of(kind: Kind) -> Callable[..., Any]:
    """Return the decorator of a component that runs in the image of `kind`, which holds kfp and this package."""
    return functools.partial(dsl.component, base_image=image_of(kind), install_kfp_package=False)()
