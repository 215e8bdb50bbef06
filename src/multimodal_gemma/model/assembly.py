"""Joining a vision encoder and a language model into a stock Llava model.

The result is nothing of our own: `LlavaForConditionalGeneration` as transformers knows it, so that whatever is trained
here loads anywhere. Only the projector between the two is new.

The frozen language model may be kept in 4 bits: QLoRA (Dettmers et al., 2023), by bitsandbytes. Each of its linear
layers keeps NF4 codes, 64 weights to a scale, and its adapters stay in full precision. What is trained is then trained
on the rounded weights. So the model that is written has these very weights, in full precision, with the adapters folded
in: it says what was validated. The adapters on the unrounded base would be another model, which nobody has measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPVisionModel,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    SiglipVisionModel,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from multimodal_gemma import logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.model import folders
from multimodal_gemma.model.folders import quiet
from multimodal_gemma.model.processor import end_of_turn

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import ModelConfig

_BLOCK = 64  # weights that share a scale, as QLoRA has it; the scales themselves are quantised once more
_PROJECTOR_FILES = ("projector.safetensors", "adapter/projector.safetensors", "model.safetensors")


def load_vision(folder: Path) -> PreTrainedModel:
    """Load the vision half of a CLIP or SigLIP checkpoint in float32.

    Args:
        folder: stock folder, a whole checkpoint or its vision half.

    Raises:
        InputError: the folder is missing, of another kind, without weights or with only a part of them.
    """
    kind = CLIPVisionModel if folders.vision_facts(folder).has_cls else SiglipVisionModel
    return _load(kind, folder, "vision")


def load_language(folder: Path) -> PreTrainedModel:
    """Load a causal language model in float32.

    Args:
        folder: stock folder.

    Raises:
        InputError: the folder is missing, no causal language model, without weights or with only a part of them.
    """
    config = folders.read_config(folder, "language")
    kind = config["model_type"]
    if "text_config" in config:
        raise InputError(
            f"model.language: {folder} is a {kind!r} model, multimodal already. Give a text-only language model."
        )
    try:
        return _load(AutoModelForCausalLM, folder, "language")
    except ValueError as error:
        if "Unrecognized" not in str(error) and "model type" not in str(error):
            raise
        raise InputError(
            f"model.language: {folder} is a {kind!r} model, no causal language model. Give another."
        ) from None


def _load(kind: Any, folder: Path, part: str) -> PreTrainedModel:
    folders.require_weights(folder, part)
    try:
        with quiet():  # a whole checkpoint's other half is reported as unexpected
            model, report = kind.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"model.{part}: the weights in {folder} cannot be read ({reason}). Fetch it again.") from None
    if report["missing_keys"] or report["mismatched_keys"]:
        lacking = sorted(str(key) for key in (*report["missing_keys"], *report["mismatched_keys"]))
        raise InputError(
            f"model.{part}: {folder} lacks {len(lacking)} of the model's weights or has them in another shape, first "
            f"{lacking[0]}. Its config.json and weights belong to different models, or the download was cut short."
        )
    assert isinstance(model, PreTrainedModel)
    return model


def assemble(
    vision: PreTrainedModel,
    language: PreTrainedModel,
    processor: LlavaProcessor,
    model: ModelConfig,
    *,
    projector: Path | None = None,
    seed: int = 0,
) -> LlavaForConditionalGeneration:
    """Join a vision encoder and a language model by a projector into a stock Llava model.

    Args:
        vision: encoder of width V.
        language: causal language model of width D; it becomes part of the result, not a copy.
        processor: its tokenizer fits `language`; the embedding table grows if `<image>` lies past its end.
        model: the configuration's section; names the feature layer.
        projector: folder of a trained model whose projector to start from; None: a fresh one.
        seed: of a fresh projector.

    Returns:
        Model in evaluation mode whose projector maps (images, patches, V) to (images, patches, D): Xavier-uniform with
        zero biases (Glorot and Bengio, 2010), or the weights found in `projector`.

    Raises:
        InputError: stock Llava cannot wrap this language model, there is no such feature layer, or the projector does
            not fit.
    """
    _grow_embeddings(language, processor)
    text = language.config
    text.architectures = [type(language).__name__]
    text._name_or_path = folders.source_name(model.language)  # not the folder that it was read from
    vision.config._name_or_path = folders.source_name(model.vision)
    layers = vision.config.num_hidden_layers
    if not -layers - 1 <= model.vision_feature_layer <= -1:
        raise InputError(
            f"config: model.vision_feature_layer={model.vision_feature_layer} is not allowed: this encoder has "
            f"{layers} layers. Choose one from {-layers - 1} to -1."
        )
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=text,
        image_token_index=processor.image_token_id,
        image_seq_length=(vision.config.image_size // vision.config.patch_size) ** 2,
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        vision_feature_layer=model.vision_feature_layer,
        tie_word_embeddings=bool(text.tie_word_embeddings),
        dtype=torch.float32,
    )
    _require_wrappable(language, config)
    with torch.device("meta"):  # its parts are replaced by loaded ones: allocating them would be for nothing
        llava = LlavaForConditionalGeneration(config)
    llava.model.vision_tower = vision
    llava.model.language_model = language.base_model
    llava.lm_head = language.get_output_embeddings()
    llava.model.multi_modal_projector = _fresh_projector(config, seed)
    if projector is not None:
        _start_projector(llava.model.multi_modal_projector, projector)
    llava.tie_weights()
    # Greedy, as it is scored: what the language model's own configuration draws from would answer otherwise.
    llava.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=language.generation_config.bos_token_id,
        eos_token_id=_stop_tokens(language, processor),
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    return llava.eval()


@torch.no_grad()
def check_wrapping(llava: LlavaForConditionalGeneration, language: PreTrainedModel) -> None:
    """Check on a few tokens that the joined model computes what the language model computes by itself.

    Stock Llava knows a decoder and a linear head. Anything else that a language model does to its logits (scaling, a
    bias) is lost, and what a model that sees later tokens makes of an image cannot be shared by what follows it.

    Raises:
        InputError: it does not, or its attention is not causal.
    """
    name = type(language).__name__
    tokens = torch.arange(3, 9, device=language.device).unsqueeze(0) % language.config.vocab_size  # (1, 6)
    alone = language(input_ids=tokens, use_cache=False).logits  # (1, 6, vocabulary)
    joined = cap_logits(llava(input_ids=tokens, use_cache=False).logits, language.config)
    shorter = language(input_ids=tokens[:, :4], use_cache=False).logits
    scale = alone.abs().max().clamp(min=1e-6)
    if (alone - joined).abs().max() > 1e-3 * scale:
        raise InputError(
            f"model.language: stock Llava computes other logits than {name} by itself. Give another language model."
        )
    if (alone[:, :4] - shorter).abs().max() > 1e-3 * scale:
        raise InputError(f"model.language: {name} sees later tokens; it is no causal language model. Give another.")


def cap_logits(logits: Tensor, text_config: Any) -> Tensor:
    """Bound logits as Gemma 2 does, by cap * tanh(logits / cap), where the language model's configuration says so."""
    cap = getattr(text_config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _require_wrappable(language: PreTrainedModel, config: LlavaConfig) -> None:
    with torch.device("meta"):
        decoder = type(AutoModel.from_config(config.text_config))
    head = language.get_output_embeddings()
    base = language.base_model
    wrappable = (
        type(base) is decoder
        and isinstance(head, nn.Linear)
        and head.bias is None
        and getattr(base, "embed_tokens", None) is base.get_input_embeddings()
    )
    if not wrappable:
        raise InputError(
            f"model.language: stock Llava cannot wrap {type(language).__name__}: it takes a decoder with embed_tokens "
            "and a linear head without bias. Give another language model, e.g. a Gemma 3, Qwen, Llama or SmolLM."
        )


@torch.no_grad()
def _grow_embeddings(language: PreTrainedModel, processor: LlavaProcessor) -> None:
    """Give tokens past the end of the embedding table a row: the mean of the others (Hewitt, 2021)."""
    table = language.get_input_embeddings().num_embeddings
    needed = len(processor.tokenizer)
    if needed <= table:
        return
    language.resize_token_embeddings(needed, mean_resizing=False)
    for layer in {language.get_input_embeddings(), language.get_output_embeddings()}:
        layer.weight[table:] = layer.weight[:table].mean(dim=0)


def _stop_tokens(language: PreTrainedModel, processor: LlavaProcessor) -> list[int]:
    stated = language.generation_config.eos_token_id
    stops = [stated] if isinstance(stated, int) else list(stated or [])
    stops += [processor.tokenizer.eos_token_id, processor.tokenizer.convert_tokens_to_ids(end_of_turn(processor))]
    return list(dict.fromkeys(stops))


def _fresh_projector(config: LlavaConfig, seed: int) -> LlavaMultiModalProjector:
    """Return a projector of Xavier-uniform weights (Glorot and Bengio, 2010) and zero biases."""
    projector = LlavaMultiModalProjector(config)
    generator = torch.Generator().manual_seed(seed)
    for layer in (projector.linear_1, projector.linear_2):
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
    return projector


def _start_projector(projector: LlavaMultiModalProjector, folder: Path) -> None:
    """Give a projector the weights of a trained one.

    Args:
        projector: gets the weights, in float32.
        folder: a trained model, its adapter folder, or any stock Llava folder whose weights are one file.

    Raises:
        InputError: there is no projector, or it joins models of other widths.
    """
    found = next((folder / name for name in _PROJECTOR_FILES if (folder / name).is_file()), None)
    if found is None:
        raise InputError(
            f"model.projector: {folder} holds neither {' nor '.join(_PROJECTOR_FILES)}. Give a trained model's folder."
        )
    weights = {}
    with safe_open(found, "pt") as stream:
        for key in stream.keys():  # noqa: SIM118 - no mapping
            before, mark, name = key.rpartition("multi_modal_projector.")
            if mark or found.name == "projector.safetensors":
                weights[name if mark else before + key] = stream.get_tensor(key)
    own = projector.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name, tensor in own.items():
        if shapes.get(name) != tuple(tensor.shape):
            raise InputError(
                f"model.projector: {found} has {name} of shape {shapes.get(name, 'none')}, this encoder and language "
                f"model need {tuple(tensor.shape)}. Give a projector trained between models of the same widths."
            )
    projector.load_state_dict({name: weights[name].to(torch.float32) for name in own})


def require_possible(model: ModelConfig) -> None:
    """Check that the language model can be kept in 4 bits.

    Raises:
        InputError: it learns as a whole, or bitsandbytes is not installed.
    """
    if model.language_quantization == "none":
        return
    if model.language_policy == "full":
        raise InputError(
            "config: model.language_quantization=nf4 does not fit model.language_policy=full: weights in 4 bits do not "
            "learn. Set model.language_policy=lora, or model.language_quantization=none."
        )
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise InputError(
            "config: model.language_quantization=nf4 needs bitsandbytes, which is not installed. Run pip install "
            "'multimodal-gemma[nf4]', or set model.language_quantization=none."
        ) from None


def quantise(llava: LlavaForConditionalGeneration, compute_dtype: torch.dtype) -> None:
    """Replace the language model's linear layers by 4-bit ones, in place; embeddings and head stay as they are.

    Args:
        llava: the joined model, without adapters, on the processor; moving it moves the codes.
        compute_dtype: what weights are unpacked to for a product.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    language = llava.model.language_model
    error = weight_bytes = 0.0
    layers = _linear(language)
    for name, layer in layers:
        packed = Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=compute_dtype,
            quant_type="nf4",
            device="meta",
        )
        codes = Params4bit(layer.weight.detach(), requires_grad=False, blocksize=_BLOCK, quant_type="nf4")
        packed.weight = codes.to("cpu")
        packed.bias = layer.bias
        # Else bitsandbytes repacks the weights of some processors at the first evaluation, and rounds otherwise then.
        packed.support_avx512bf16_for_cpu = False
        weight = layer.weight.detach()
        error += float((_rounded(weight) - weight).pow(2).sum() / weight.pow(2).sum())
        weight_bytes += packed.weight.nbytes
        language.set_submodule(name, packed.eval())
    llava.is_loaded_in_4bit = True  # by which PEFT chooses its layer
    logs.get("train").info(
        f"{len(layers)} layers of the language model are kept in 4 bits, {weight_bytes / 1e6:,.1f} MB; rounding moves "
        f"their weights by {(error / len(layers)) ** 0.5:.1%} of their size"
    )


def round_weights(llava: LlavaForConditionalGeneration) -> None:
    """Give the language model's linear layers the values that their 4-bit codes stand for, in full precision."""
    for _, layer in _linear(llava.model.language_model):
        layer.weight.data = _rounded(layer.weight.detach())


def _linear(language: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in language.named_modules() if isinstance(module, nn.Linear)]


def _rounded(weight: Tensor) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, state = quantize_4bit(weight, blocksize=_BLOCK, compress_statistics=True, quant_type="nf4")
    values: Tensor = dequantize_4bit(codes, state)
    return values
