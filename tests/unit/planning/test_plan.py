"""A plan's figures are those of the published models, counted by stock transformers and PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPVisionConfig, CLIPVisionModel, Gemma3ForCausalLM, Gemma3TextConfig

from multimodal_gemma import cli, config
from multimodal_gemma.errors import InputError
from multimodal_gemma.planning import arithmetic, estimate, sources


@pytest.fixture(scope="module")
def recipe():
    return config.compose("llava-150k")


@pytest.fixture(scope="module")
def shapes(recipe):
    return sources.shapes_of(recipe, None)


@pytest.fixture(scope="module")
def language():
    text = Gemma3TextConfig(
        vocab_size=262_144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256,
    )  # fmt: skip
    with torch.device("meta"):
        return Gemma3ForCausalLM(text)


def test_the_recipes_parameters_are_those_that_peft_counts(recipe, shapes, language):
    lora = recipe.model.lora
    with torch.device("meta"):
        adapted = get_peft_model(language, LoraConfig(r=lora.rank, target_modules=lora.targets))
    learning, _ = adapted.get_nb_trainable_parameters()
    assert shapes.adapter_weights(lora.rank, lora.targets) == learning == 15_187_968
    assert arithmetic.trainable(shapes, recipe) == learning + 1_066_240 == 16_254_208
    assert shapes.language_weights == 100_270_080


def test_the_encoders_weights_are_counted_but_for_biases_norms_and_positions(shapes):
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
    )
    with torch.device("meta"):
        model = CLIPVisionModel(vision)
    counted = sum(
        weight.numel() for name, weight in model.named_parameters() if weight.ndim > 1 and "position" not in name
    )
    assert shapes.vision_weights == counted
    assert arithmetic.Shapes.of(vision, Gemma3TextConfig()).image_tokens == shapes.image_tokens == 256


def test_operations_are_those_that_pytorch_counts():
    """A forward pass of a small language model, by PyTorch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    text = Gemma3TextConfig(
        vocab_size=100, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=1, head_dim=32,
    )  # fmt: skip
    small = arithmetic.Shapes.of(CLIPVisionConfig(), text)
    model = Gemma3ForCausalLM(text).model.eval()
    model.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(inputs_embeds=torch.zeros(1, 50, 64), use_cache=False)
    attention = 4 * 3 * 4 * 32 * 50**2  # both products; the counter knows no causality
    assert counter.get_total_flops() == pytest.approx(2 * small.language_weights * 50 + attention, rel=0.01)


def test_work_follows_the_policies(shapes, recipe):
    lora = arithmetic.Work.of(shapes, recipe.model)
    full = arithmetic.Work.of(shapes, config.compose("llava-1.5").model)
    assert lora.position == 4 * shapes.language_weights + 6 * 15_187_968
    assert full.position == 6 * shapes.language_weights
    assert lora.encoded == pytest.approx(162e9, rel=0.01)


def test_the_default_recipe_fits_into_24_gb(recipe, shapes):
    load = sources.load_of(recipe, shapes, None)
    rows = {row.device.name: row for row in estimate.table(recipe, shapes, load)}
    assert rows["L4"].budget >= load.longest
    assert rows["L4"].memory_gb <= 24
    budgets = [row.budget for row in sorted(rows.values(), key=lambda row: row.device.memory_gb)]
    assert budgets == sorted(budgets)  # grows with what is there
    least, most = rows["A100-80"].minutes
    assert most / least == pytest.approx(40 / 15)
    assert 18 <= least <= 25  # 473,136 samples of 318 GFLOP and 81,479 of 162 at 40% of 312 TFLOP/s, by hand: 21.9


def test_a_sample_of_the_recipe_takes_what_is_counted_by_hand(recipe, shapes):
    """Alone 382 GFLOP; where 1.94 conversations share the 256 positions of their image a sixth less."""
    load = sources.load_of(recipe, shapes, None)
    work = arithmetic.Work.of(shapes, recipe.model)
    alone = work.step(round(load.positions), round(load.positions**2), round(load.supervised), 1)
    assert load.positions == 486
    assert alone == pytest.approx(382e9, rel=0.02)
    shared = alone - (1 - 81_479 / 157_712) * (work.position * 256 + work.pair * 256**2 + work.projected)
    assert estimate.step_operations(shapes, recipe, load) / load.samples == pytest.approx(shared, rel=0.01)


def test_four_bits_save_three_quarters_of_the_frozen_linear_layers(recipe, shapes):
    packed = config.compose("llava-150k", ["model.language_quantization=nf4"])
    saved = estimate.fixed_bytes(shapes, recipe) - estimate.fixed_bytes(shapes, packed)
    assert saved == pytest.approx(0.742 * 2 * 100_270_080, rel=0.001)  # 4.127 bits of 16 remain


def test_a_benchmarks_share_is_taken(tmp_path, recipe):
    result = tmp_path / "gpu.json"
    result.write_text(json.dumps({"mfu": 0.2}))
    assumed, measured = estimate.text(recipe), estimate.text(recipe, benchmark=result)
    assert "assumed, not measured" in assumed
    assert "the benchmark's share" in measured
    (least, most), (found,) = (text.split("| A10 |")[1].split("|")[2].split(" to ") for text in (assumed, measured))
    assert float(found) == pytest.approx(2 * float(least), rel=0.03)  # 20% instead of 40%
    assert float(found) == pytest.approx(0.75 * float(most), rel=0.03)  # instead of 15%


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA A100-PCIE-40GB", "A100-40"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA H100", None),
        ("Tesla T4", None),
    ],
)
def test_drivers_names_are_known(name, expected):
    found = arithmetic.find_device(name)
    assert (found.name if found else None) == expected


def test_what_cannot_be_planned_is_said(tmp_path, recipe):
    with pytest.raises(InputError, match="the shape of sample://vision is not known here"):
        estimate.text(config.compose("sample"))
    with pytest.raises(InputError, match=r"states no share"):
        (tmp_path / "cpu.json").write_text("{}")
        estimate.text(recipe, benchmark=tmp_path / "cpu.json")


def test_the_docs_print_what_the_command_prints(capsys):
    assert cli.main(["plan"]) == 0
    times, mark, rest = capsys.readouterr().out.strip().partition("\n\nRoom, ")
    docs = Path(__file__).parents[3] / "docs"
    assert times in (docs / "gpu-guide.md").read_text(encoding="utf-8")
    assert mark.strip() + " " + rest in (docs / "cluster.md").read_text(encoding="utf-8")


def test_room_is_what_the_recipes_files_weigh(recipe, shapes):
    """By hand: COCO's zip over its images, pixels of 224 x 224 in three bytes, weights by what their kind takes."""
    found = sources.room_of(recipe, train_job=False)
    photographs = 81_479 * 19_336_861_798 / 118_287
    pixels = 81_479 * 224 * 224 * 3
    features = 81_479 * 256 * 1024 * 2  # the 43 GB of the GPU guide
    assert found.tasks["download-dataset"] == pytest.approx(photographs, rel=0.02)
    assert found.tasks["preprocess-dataset"] == pytest.approx(photographs + pixels, rel=0.02)
    weights = 303_179_776 + 268_098_176 + 1_066_240  # encoder, language model, projector
    base = 1.71e9 + 2 * 268_098_176
    states = 3 * 12 * 16_254_208  # two best checkpoints and the last, a learning weight with its moments
    trained = pixels + features + base + 4 * weights + states
    assert found.tasks["train-model"] == pytest.approx(trained, rel=0.01)
    assert found.again == pytest.approx(6 * weights + states, rel=0.01)  # the model in fp32, its export in bf16


def test_room_follows_what_is_asked(recipe):
    half = config.compose("llava-150k", ["data.limit=40000", "benchmarks.vqa_questions=null"])
    whole, limited = (sources.room_of(each, train_job=False) for each in (recipe, half))
    assert limited.tasks["download-dataset"] < 0.5 * whole.tasks["download-dataset"]
    assert limited.tasks["download-benchmarks"] == pytest.approx(0.2e9 + 41_004 * 163_474, rel=0.001)
    delegated = sources.room_of(recipe, train_job=True)
    assert delegated.node == whole.tasks["train-model"]
    assert delegated.tasks["train-model"] < 0.3 * delegated.node  # the task only sends and fetches
    assert whole.work == 0 < delegated.work
    uncached = config.compose("llava-150k", ["training.feature_cache=none"])
    assert sources.room_of(uncached, train_job=False).tasks["train-model"] < 0.4 * whole.tasks["train-model"]
