"""The processor of the joined model: its tokenizer knows `<image>`, its chat template marks what is learnt.

Most language models have no image token. Instead of growing their vocabulary, a spare token that they were never
trained on becomes `<image>`; only where there is none a token is added, and the assembly grows the embedding table.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files
from multimodal_gemma.errors import InputError
from multimodal_gemma.model import chat, folders

if TYPE_CHECKING:
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

# Tokens that language models keep free or use only where no image can be (fill-in-the-middle padding), best first.
_SPARE = (
    r"<unused\d+>",
    r"<\|reserved_special_token_\d+\|>",
    r"<\|image_pad\|>",
    r"<\|fim_pad\|>",
    r"<\|placeholder\d*\|>",
    r"<\|dummy_\d+\|>",
    r"<\|extra_\d+\|>",
    r"\[control_\d+\]",
)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def build_processor(vision: Path, language: Path, image_fit: str = "stock") -> LlavaProcessor:
    """Join the image processor of an encoder and the tokenizer of a language model.

    Args:
        vision: stock folder of a CLIP or SigLIP checkpoint with preprocessor_config.json.
        language: stock folder of a causal language model with its tokenizer.
        image_fit: how a picture becomes a square: "stock" (as the encoder's own processor does), "crop" (its middle),
            "pad" (the whole of it between borders in the mean colour, as LLaVA-1.5) or "squeeze".

    Returns:
        A stock LlavaProcessor with image token `<image>`, right padding and the family's chat template; it survives
        save_pretrained and from_pretrained.

    Raises:
        InputError: a folder lacks a file that is needed, or the image processor does not fit the encoder.
    """
    from transformers import LlavaProcessor

    facts = folders.vision_facts(vision)
    tokenizer = _tokenizer(language)
    starts_with_bos = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    family = chat.family_of(tokenizer.get_vocab(), eos_token=str(tokenizer.eos_token), starts_with_bos=starts_with_bos)
    tokenizer.chat_template = family.template  # so that the tokenizer alone writes the same turns
    return LlavaProcessor(
        image_processor=_fitted(_image_processor(vision, facts), image_fit, facts.image_size),
        tokenizer=tokenizer,
        patch_size=facts.patch_size,
        vision_feature_select_strategy=facts.select_strategy,
        num_additional_image_tokens=int(facts.has_cls),
        image_token=chat.IMAGE,
        chat_template=family.template,
    )


def save_processor(processor: LlavaProcessor, folder: Path) -> None:
    """Save a processor for transformers 5 and 4 alike.

    What 5 writes, 4.57 does not read: it looks for preprocessor_config.json, and wants the extra special tokens as a
    dictionary. 5 reads both forms.
    """
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # preprocessor_config.json
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list) and extra:
        config["additional_special_tokens"] = extra
    if not isinstance(extra, dict):
        config["extra_special_tokens"] = {}
    for key in ("is_local", "local_files_only", "name_or_path"):  # of the folder that it was read from
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def end_of_turn(processor: LlavaProcessor) -> str:
    """Return the token that ends an answer in this processor's chat template."""
    tokenizer = processor.tokenizer
    return chat.family_of(tokenizer.get_vocab(), eos_token=str(tokenizer.eos_token), starts_with_bos=False).end_of_turn


def differences(theirs: LlavaProcessor, ours: LlavaProcessor) -> list[str]:
    """Say what two processors do otherwise: tokens and pixels made with one may then mean nothing to the other."""
    one, two = _traits(theirs), _traits(ours)
    return [
        f"{name} differs" + (f" ({one[name]} there, {two[name]} here)" if isinstance(one[name], str) else "")
        for name in one
        if one[name] != two[name]
    ]


def _image_processor(vision: Path, facts: folders.VisionFacts) -> Any:
    from transformers import AutoImageProcessor

    if not (vision / "preprocessor_config.json").is_file():
        raise InputError(f"model.vision: {vision} has no preprocessor_config.json. Fetch the checkpoint whole.")
    image_processor = AutoImageProcessor.from_pretrained(vision)
    side = image_processor.crop_size if getattr(image_processor, "do_center_crop", False) else image_processor.size
    made = (side["height"], side["width"]) if "height" in side else (side["shortest_edge"],) * 2
    if made != (facts.image_size, facts.image_size):
        raise InputError(
            f"model.vision: the image processor of {vision} makes images of {made[0]} x {made[1]} pixels, the encoder "
            f"takes {facts.image_size} x {facts.image_size}. Fetch config.json and preprocessor_config.json of one "
            "checkpoint."
        )
    return image_processor


def _fitted(stock: Any, image_fit: str, side: int) -> Any:
    """Return a stock image processor of the encoder's scale and filter that makes squares in the given way."""
    if image_fit == "stock":
        return stock
    scale = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_convert_rgb")
    how = {"resample": int(stock.resample), **{name: getattr(stock, name) for name in scale}}
    square = {"height": side, "width": side}
    if image_fit == "squeeze":
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        return SiglipImageProcessorPil(size=square, **how)
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    return LlavaImageProcessorPil(
        size={"shortest_edge": side}, crop_size=square, do_center_crop=True, do_pad=image_fit == "pad", **how
    )


def _tokenizer(language: Path) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    config = folders.read_config(language, "language")
    table = config.get("vocab_size")
    # Without one of these, transformers makes an empty tokenizer of the right class and says nothing.
    if not any((language / name).is_file() for name in _TOKENIZER_FILES):
        raise InputError(f"model.language: {language} has no tokenizer (tokenizer.json). Fetch the folder whole.")
    try:
        stock = AutoTokenizer.from_pretrained(language)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"model.language: {language} holds no tokenizer that can be loaded ({reason}).") from None
    if stock.eos_token is None:
        raise InputError(f"model.language: the tokenizer of {language} has no end-of-text token. Give another model.")
    if not isinstance(table, int):
        table = len(stock)
    with tempfile.TemporaryDirectory() as name:
        stock.save_pretrained(name)
        if not (Path(name) / "tokenizer.json").is_file():
            raise InputError(
                f"model.language: the tokenizer of {language} has no tokenizer.json form. Give another model."
            )
        _name_image_token(Path(name), table)
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="right")  # adds `<image>` where no token was spare
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _name_image_token(folder: Path, table: int) -> None:
    """Make a spare token `<image>` in saved tokenizer files; drop tokens past the embedding table.

    Gemma 3's tokenizers define `<image_soft_token>` one past the table of the text-only models: text that contains it
    would read an embedding that does not exist, and LlavaProcessor would prefer it to `<image>`.

    Args:
        folder: tokenizer.json and tokenizer_config.json.
        table: rows of the language model's embedding table.
    """
    path, config_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
    backend = json.loads(path.read_text(encoding="utf-8"))
    config = json.loads(config_path.read_text(encoding="utf-8"))
    added: list[dict[str, Any]] = backend["added_tokens"]
    beyond = {token["content"] for token in added if token["id"] >= table}
    added[:] = [token for token in added if token["id"] < table]
    vocabulary = backend["model"]["vocab"]
    spare = None
    if isinstance(vocabulary, dict):  # a unigram model's list of scores has no spare tokens
        for token in beyond:
            vocabulary.pop(token, None)
        ids = {**vocabulary, **{token["content"]: token["id"] for token in added}}
        spare = chat.IMAGE if chat.IMAGE in ids else _spare(ids)
    if spare is not None:
        number = ids[spare]
        if spare in vocabulary:
            vocabulary[chat.IMAGE] = vocabulary.pop(spare)
        added[:] = [token for token in added if token["id"] != number]
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added.append({"id": number, "content": chat.IMAGE, **flags, "special": True})
        added.sort(key=lambda token: token["id"])
    path.write_text(json.dumps(backend, ensure_ascii=False), encoding="utf-8")
    gone = {*beyond, spare} - {chat.IMAGE}
    config_path.write_text(json.dumps(_without(config, gone)), encoding="utf-8")


def _spare(ids: dict[str, int]) -> str | None:
    for pattern in _SPARE:
        found = [token for token in ids if re.fullmatch(pattern, token)]
        if found:
            return min(found, key=lambda token: ids[token])
    return None


def _without(config: dict[str, Any], gone: set[str | None]) -> dict[str, Any]:
    """Return the tokenizer's configuration with `<image>` as its image token and without tokens that are gone."""
    kept = {
        key: value
        for key, value in config.items()
        if key not in ("image_token", "added_tokens_decoder", "chat_template")
        and not (isinstance(value, str) and value in gone)
    }
    extra = kept.get("extra_special_tokens", [])
    if isinstance(extra, dict):
        kept["extra_special_tokens"] = {
            key: token for key, token in extra.items() if key != "image_token" and token not in gone
        }
    else:
        kept["extra_special_tokens"] = [token for token in extra if token not in gone]
    return {**kept, "image_token": chat.IMAGE}


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
