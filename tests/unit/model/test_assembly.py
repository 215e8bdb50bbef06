"""The joined model is stock Llava: it says what its parts say, is saved merged, and loads without this project."""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPModel,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from multimodal_gemma.errors import InputError
from multimodal_gemma.model import adapters, assembly
from tests.unit.training import toys

SMALL = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def join(base, settings, **more):
    processor = toys.build_processor(base / "vision", base / "language")
    vision, language = assembly.load_vision(base / "vision"), assembly.load_language(base / "language")
    return assembly.assemble(vision, language, processor, settings, **more), language, processor


@pytest.fixture(scope="module", params=toys.FAMILIES)
def base(request, tmp_path_factory):
    return toys.write_models(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return toys.write_models(tmp_path_factory.mktemp("gemma"))


def question(processor):
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}],
        add_generation_prompt=True,
    )
    image = Image.fromarray(toys.square("red", 1))
    return processor(text=[text], images=[image], add_special_tokens=False, return_tensors="pt")


def test_the_merged_folder_loads_by_stock_transformers_with_equal_logits(base, tmp_path):
    settings = toys.configuration().model
    llava, language, processor = join(base, settings, seed=1)
    assembly.check_wrapping(llava, language)
    peft_model = adapters.apply_policies(llava, settings, seed=1)
    with torch.no_grad():
        for weight in adapters.trained_weights(llava).values():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(7)), alpha=0.05)
    inputs = question(processor)
    with torch.no_grad():
        trained = llava(**inputs).logits
    processor.save_pretrained(tmp_path / "processor")
    adapters.save_adapter(llava, peft_model, tmp_path / "model" / "adapter")
    adapters.save_merged(adapters.merge(llava, peft_model), tmp_path / "processor", tmp_path / "model")

    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    again = AutoProcessor.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**question(again)).logits, trained, rtol=0, atol=1e-5)
    assert type(loaded).__name__ == "LlavaForConditionalGeneration"
    text_config = json.loads((tmp_path / "model" / "config.json").read_text())["text_config"]
    assert text_config["architectures"] == [type(language).__name__]
    assert (tmp_path / "model" / "model.safetensors").stat().st_mode & 0o044

    fresh, _, _ = join(base, settings, seed=99)
    projector = load_file(tmp_path / "model" / "adapter" / "projector.safetensors")
    fresh.model.multi_modal_projector.load_state_dict(projector)
    with_adapter = PeftModel.from_pretrained(fresh, tmp_path / "model" / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(with_adapter(**inputs).logits, trained, rtol=0, atol=1e-5)


def test_adapters_never_touch_the_vision_encoder(gemma):
    settings = toys.configuration().model
    llava, _, _ = join(gemma, settings)
    adapters.apply_policies(llava, settings, seed=0)
    learning = adapters.trained_weights(llava)
    lora = {name for name in learning if "lora_" in name}
    assert len(lora) == 2 * 7 * 2  # A and B of seven linear layers in two blocks
    assert all("language_model" in name for name in lora)
    assert {adapters.part_of(name) for name in learning} == {"lora", "projector"}
    assert not llava.training


def test_generation_is_greedy_and_ends_at_the_end_of_a_turn(gemma):
    llava, _, processor = join(gemma, toys.configuration().model)
    assert llava.generation_config.to_diff_dict().keys() <= {
        "bos_token_id", "do_sample", "eos_token_id", "pad_token_id", "transformers_version"
    }  # fmt: skip
    assert llava.generation_config.do_sample is False
    stops = llava.generation_config.eos_token_id
    assert {processor.tokenizer.eos_token_id, processor.tokenizer.convert_tokens_to_ids("<end_of_turn>")} <= set(stops)
    assert llava.generation_config.pad_token_id == processor.tokenizer.pad_token_id


def test_a_fresh_projector_is_xavier_uniform_and_a_function_of_the_seed(gemma):
    settings = toys.configuration().model
    one, same, other = (join(gemma, settings, seed=seed)[0].model.multi_modal_projector for seed in (1, 1, 2))
    bound = math.sqrt(6 / (16 + 24))  # Glorot and Bengio (2010), equation 16
    assert one.linear_1.weight.shape == (24, 16)
    assert 0.9 * bound < float(one.linear_1.weight.abs().max()) <= bound
    assert not one.linear_1.bias.any()
    assert not one.linear_2.bias.any()
    assert torch.equal(one.linear_2.weight, same.linear_2.weight)
    assert not torch.equal(one.linear_2.weight, other.linear_2.weight)


def test_half_of_a_whole_clip_checkpoint_is_the_encoder_of_the_whole(tmp_path):
    folder = toys.write_vision(tmp_path / "clip", "clip")
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = CLIPModel.from_pretrained(folder).vision_model(pixel_values=pixels).last_hidden_state
        half = assembly.load_vision(folder)(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(half, whole, rtol=0, atol=0)


def test_an_added_image_token_gets_the_mean_embedding(tmp_path):
    base = toys.write_models(tmp_path, "qwen2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = base / "language" / name
        path.write_text(path.read_text().replace("<|fim_pad|>", "<|busy|>"))
    before = assembly.load_language(base / "language").get_input_embeddings().weight
    llava, language, processor = join(base, toys.configuration().model)
    table = language.get_input_embeddings().weight
    assert processor.image_token_id == len(before) == len(table) - 1
    torch.testing.assert_close(table[-1], before.mean(dim=0))
    assert llava.lm_head.weight is table
    assert llava.config.text_config.vocab_size == len(table)


def test_a_trained_projector_is_where_the_next_training_starts(gemma, tmp_path):
    settings = toys.configuration().model
    llava, _, processor = join(gemma, settings, seed=5)
    adapters.save_adapter(llava, None, tmp_path / "model" / "adapter")
    processor.save_pretrained(tmp_path / "processor")
    adapters.save_merged(llava, tmp_path / "processor", tmp_path / "model")
    expected = llava.model.multi_modal_projector.linear_2.weight
    for folder in (tmp_path / "model", tmp_path / "model" / "adapter"):
        started, _, _ = join(gemma, settings, projector=folder, seed=6)
        assert torch.equal(started.model.multi_modal_projector.linear_2.weight, expected)
    (tmp_path / "model" / "adapter" / "projector.safetensors").unlink()
    merged, _, _ = join(gemma, settings, projector=tmp_path / "model", seed=6)
    assert torch.equal(merged.model.multi_modal_projector.linear_2.weight, expected)


def test_a_projector_of_other_widths_is_refused(gemma, tmp_path):
    narrow = {"linear_1.weight": torch.zeros(8, 16), "linear_1.bias": torch.zeros(8)}
    from safetensors.torch import save_file

    save_file(narrow, tmp_path / "projector.safetensors")
    with pytest.raises(InputError, match=r"linear_1.weight of shape \(8, 16\), .* need \(24, 16\)"):
        join(gemma, toys.configuration().model, projector=tmp_path)
    with pytest.raises(InputError, match=r"model.projector: .* holds neither"):
        join(gemma, toys.configuration().model, projector=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (lambda: PhiForCausalLM(PhiConfig(**SMALL, vocab_size=400)), "cannot wrap PhiForCausalLM"),
        (
            lambda: GraniteForCausalLM(GraniteConfig(**SMALL, vocab_size=400, logits_scaling=8.0)),
            "other logits than GraniteForCausalLM",
        ),
    ],
    ids=["head with bias", "scaled logits"],
)
def test_a_language_model_that_stock_llava_would_change_is_refused(gemma, tmp_path, model, sentence):
    model().save_pretrained(tmp_path)
    toys.tokenizer("llama").save_pretrained(tmp_path)
    processor = toys.build_processor(gemma / "vision", tmp_path)
    language = assembly.load_language(tmp_path)
    with pytest.raises(InputError, match=sentence):
        llava = assembly.assemble(
            assembly.load_vision(gemma / "vision"), language, processor, toys.configuration().model
        )
        assembly.check_wrapping(llava, language)


def test_a_model_that_sees_later_tokens_is_refused(gemma):
    llava, language, _ = join(gemma, toys.configuration().model)
    for layer in language.base_model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(InputError, match="no causal language model"):
        assembly.check_wrapping(llava, language)


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_layer(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (cut_weights, "cannot be read"),
        (drop_layer, "lacks .* of the model's weights"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "clip"}'), "no causal language model"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "gemma3", "text_config": {}}'),
            "multimodal already",
        ),
        (lambda folder: (folder / "config.json").write_text("{}"), "names no model_type"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    ],
    ids=["no weights", "cut weights", "too few weights", "another kind", "multimodal", "no type", "no config"],
)
def test_a_spoilt_language_folder_gets_one_sentence(tmp_path, spoil, sentence):
    folder = toys.write_language(tmp_path, "llama")
    spoil(folder)
    with pytest.raises(InputError, match=sentence):
        assembly.load_language(folder)
    with pytest.raises(InputError, match="does not exist"):
        assembly.load_vision(tmp_path / "nowhere")


def test_unknown_layers_are_named(gemma):
    settings = toys.configuration("model.vision_feature_layer=-5").model
    with pytest.raises(InputError, match=r"vision_feature_layer=-5 is not allowed: this encoder has 3 layers"):
        join(gemma, settings)
    settings = toys.configuration("model.lora.targets=[qkv_proj]").model
    llava, _, _ = join(gemma, settings)
    with pytest.raises(InputError, match=r"no layer 'qkv_proj'. Its linear layers: down_proj, gate_proj"):
        adapters.apply_policies(llava, settings, seed=0)


def test_a_model_that_learns_nothing_is_refused(gemma):
    settings = toys.configuration("model.projector_policy=frozen", "model.language_policy=frozen").model
    llava, _, _ = join(gemma, settings)
    with pytest.raises(InputError, match="nothing would learn"):
        adapters.apply_policies(llava, settings, seed=0)


def test_merged_files_are_the_processors_own(gemma, tmp_path):
    llava, _, processor = join(gemma, toys.configuration().model)
    processor.save_pretrained(tmp_path / "processor")
    adapters.save_merged(llava, tmp_path / "processor", tmp_path / "model")
    for path in (tmp_path / "processor").iterdir():
        assert (tmp_path / "model" / path.name).read_bytes() == path.read_bytes()
