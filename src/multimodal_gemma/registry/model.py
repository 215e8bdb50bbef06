"""The registered model's code: an image and a question in, an answer out.

MLflow copies this one file beside the weights and runs it wherever the model is loaded, so it needs torch,
transformers, Pillow and MLflow, and nothing of this project.
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import mlflow
import pandas
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 50_000_000  # decoded size; a larger picture is a mistake or a bomb
MAX_NEW_TOKENS = 64  # tokens an answer may have unless the caller says otherwise


class VisionLanguageModel(mlflow.pyfunc.PythonModel):
    """A stock image-text-to-text folder that answers questions about images."""

    def load_context(self, context: Any) -> None:
        """Load model and processor from the artifact `model`, onto a GPU if there is one."""
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = context.artifacts["model"]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", local_files_only=True)
        self.model = self.model.to(device).eval()

    def predict(self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None) -> list[str]:
        """Answer one question an image, greedily.

        Args:
            context: MLflow's; unused.
            model_input: table with the columns `image` (a file's bytes in base64, a data: URI too) and `question`.
            params: `max_new_tokens`, tokens an answer may have.

        Returns:
            One answer a row.

        Raises:
            ValueError: an image cannot be read or a question holds the image placeholder; the sentence names the row.
        """
        limit = int((params or {}).get("max_new_tokens", MAX_NEW_TOKENS))
        if limit < 1:
            raise ValueError(f"max_new_tokens={limit} leaves no room for an answer. Give at least 1.")
        rows = zip(model_input["image"], model_input["question"], strict=True)
        return [self._answer(_decode(image, row), question, row, limit) for row, (image, question) in enumerate(rows)]

    def _answer(self, image: Image.Image, question: Any, row: int, limit: int) -> str:
        import torch

        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"row {row}: there is no question. Give a text.")
        if self.processor.image_token in question:
            raise ValueError(
                f"row {row}: the question holds the image placeholder {self.processor.image_token}. Leave it out."
            )
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        # The template has written the beginning-of-text token already.
        inputs = self.processor(images=[image], text=[prompt], add_special_tokens=False, return_tensors="pt")
        inputs = inputs.to(self.model.device, dtype=self.model.dtype)
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        return str(self.processor.decode(answer, skip_special_tokens=True)).strip()


def _decode(text: Any, row: int) -> Image.Image:
    """Return the RGB image behind base64 text, upright."""
    if not isinstance(text, str) or not text:
        raise ValueError(f"row {row}: there is no image. Send the file's bytes in base64.")
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        data = base64.b64decode("".join(encoded.split()), validate=True)  # `base64` breaks lines at 76 characters
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"row {row}: the image has more than {MAX_PIXELS:,} pixels. Send a smaller one.")
            opened.load()
            return ImageOps.exif_transpose(opened).convert("RGB")
    except binascii.Error:
        raise ValueError(f"row {row}: the image is no base64. Send the file's bytes in base64.") from None
    except Image.DecompressionBombError:
        raise ValueError(f"row {row}: the image has more than {MAX_PIXELS:,} pixels. Send a smaller one.") from None
    except OSError as error:
        raise ValueError(f"row {row}: the image cannot be read ({error}). Send one of {', '.join(FORMATS)}.") from None


mlflow.models.set_model(VisionLanguageModel())
