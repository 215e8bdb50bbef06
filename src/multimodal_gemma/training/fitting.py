"""Whether a processed dataset fits the base models that it is to be trained with.

Tokens and pixels were made for one tokenizer, one chat template and one encoder. Other base models may still take them,
e.g. a later revision of the same model; where they do not, the sentence names what differs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files, logs
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from transformers import LlavaProcessor

    from multimodal_gemma.data.processed import ProcessedDataset


def require_fit(data: ProcessedDataset, models: Path, digest: str) -> None:
    """Check that a dataset's tokens and images are what these base models would have been given.

    Args:
        data: the processed dataset.
        models: base models, with `vision/` and `language/`.
        digest: of the base models' manifest; the one that the dataset was prepared with fits by construction.

    Raises:
        InputError: the tokenizer, the chat template, the resolution, the patches or the normalisation differ.
    """
    prepared = data.manifest.inputs.get("models")
    if prepared is None or prepared == digest:
        return
    from multimodal_gemma.model.processor import build_processor

    own = build_processor(models / "vision", models / "language", data.manifest.config.get("image_fit", "stock"))
    theirs, ours = _traits(data.processor()), _traits(own)
    different = [_told(name, theirs[name], ours[name]) for name in theirs if theirs[name] != ours[name]]
    if different:
        raise InputError(
            f"train: {data.folder} was prepared for other base models: {', '.join(different)}. Run preprocess again "
            "with these models."
        )
    logs.get("train").info(
        f"{data.folder} was prepared with other base models (digest {prepared[:12]}, these have {digest[:12]}), whose "
        "tokenizer, chat template and images are the same"
    )


def _traits(processor: LlavaProcessor) -> dict[str, Any]:
    """Return what tokens and pixels depend on, by the name that a reader knows it by."""
    with tempfile.TemporaryDirectory() as name:
        processor.tokenizer.save_pretrained(name)
        tokenizer = files.sha256_file(Path(name) / "tokenizer.json")
    stock = processor.image_processor
    crops = getattr(stock, "do_center_crop", False)
    side = stock.crop_size if crops else stock.size
    patch = processor.patch_size
    return {
        "its resolution": f"{side['height']} px",
        "its patches": f"{patch} px",
        "its tokenizer": f"digest {tokenizer[:12]}",
        "its chat template": f"digest {files.digest_of(processor.chat_template)[:12]}",
        "its normalisation of images": (
            [stock.image_mean, stock.image_std] if stock.do_normalize else "none",
            stock.rescale_factor if stock.do_rescale else 1,
            stock.resample,
            crops,
        ),
    }


def _told(name: str, theirs: Any, ours: Any) -> str:
    return f"{name} differs ({theirs} there, {ours} here)" if isinstance(theirs, str) else f"{name} differs"
