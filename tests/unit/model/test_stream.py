"""A stream without padding or mask computes what stock Llava with PEFT computes, labels, padding and all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from multimodal_gemma.data.processed import ProcessedDataset
from multimodal_gemma.errors import InputError
from multimodal_gemma.model import adapters, assembly, attention
from multimodal_gemma.model.adapters import fuse
from multimodal_gemma.model.forward import Encoder, SupervisedLoss
from multimodal_gemma.model.stream import Composer
from tests.unit.training import toys

CPU = torch.device("cpu")


def stock_inputs(dataset, processor, indices):
    """Inputs made by the stock processor from text and images, right-padded with a mask and labels."""
    split = dataset.split("train")
    texts, images, labels = [], [], []
    for index in indices:
        sample = split[index]
        texts.append(processor.tokenizer.decode(sample.input_ids))
        if sample.image_index >= 0:
            images.append(Image.fromarray(dataset.image(sample.image_index)))
        row = []
        for token, learnt in zip(sample.input_ids, sample.supervised, strict=True):
            row += [int(token) if learnt else -100] * (dataset.image_tokens if token == processor.image_token_id else 1)
        labels.append(row)
    inputs = processor(text=texts, images=images or None, add_special_tokens=False, padding=True, return_tensors="pt")
    width = inputs["input_ids"].shape[1]
    inputs["labels"] = torch.tensor([row + [-100] * (width - len(row)) for row in labels])
    return inputs


def learning_model(base, *overrides):
    config = toys.configuration("model.lora.dropout=0.0", "model.vision_feature_layer=-2", *overrides).model
    processor = toys.build_processor(base / "vision", base / "language")
    vision, language = assembly.load_vision(base / "vision"), assembly.load_language(base / "language")
    llava = assembly.assemble(vision, language, processor, config, seed=3)
    peft_model = adapters.apply_policies(llava, config, seed=3)
    with torch.no_grad():
        for name, weight in llava.named_parameters():
            if "lora_B" in name:  # zero at first: adapters would not show in the loss
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(5))
    return llava.train(), peft_model


def composer(dataset, split="train"):
    return Composer(dataset.split(split), dataset.image_tokens, dataset.image_token_id)


def our_loss(llava, dataset, indices, *, encode_inside=False):
    stock = dataset.processor().image_processor
    encoder = Encoder(llava, list(stock.image_mean), list(stock.image_std), stock.rescale_factor)
    stream = composer(dataset).stream(indices).to(CPU)
    pictures = None
    if stream.image_indices:
        pictures = torch.from_numpy(np.stack([dataset.image(index) for index in stream.image_indices]))
        if not encode_inside:
            with torch.no_grad():
                pictures = encoder(pictures)
    attention.use_streams(llava.model.language_model)
    loss = SupervisedLoss(llava, encoder if encode_inside else None).train()
    return loss(stream, pictures) / len(stream.targets)


def gradients(llava):
    return {name: weight.grad.clone() for name, weight in llava.named_parameters() if weight.grad is not None}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def prepare(folder, name, **data):
    kind = {"siglip": "siglip_vision_model", "siglip2": "siglip"}.get(name, "clip")
    family = name if name in toys.FAMILIES else "gemma"
    base = toys.write_models(folder / "models", family, kind)
    return base, ProcessedDataset(toys.write_dataset(folder / "data", base, **data))


@pytest.fixture(scope="module", params=[*toys.FAMILIES, "siglip", "siglip2"])
def prepared(request, tmp_path_factory):
    return prepare(tmp_path_factory.mktemp(request.param), request.param, an_image=6)


# The toys' rule: conversations 0 and 1 have no image, odd ones begin with it, even ones end their question with it, and
# six in a row are about the same one.
CASES = {
    "several conversations an image": [3, 5, 7, 9, 11, 13],
    "one image each": [5, 7, 13],
    "one conversation": [9],
    "image in the middle": [8, 10, 2],
    "text only": [0, 1],
    "all kinds": [0, 5, 3, 8, 1, 21, 23, 4],
}


@pytest.mark.parametrize("fused", [False, True], ids=["peft", "fused"])
@pytest.mark.parametrize("indices", CASES.values(), ids=CASES.keys())
def test_loss_and_gradients_are_those_of_stock_llava_with_peft(prepared, indices, fused):
    """Gemma's window of 8 positions is shorter than what stands before a conversation's words."""
    base, dataset = prepared
    llava, peft_model = learning_model(base)
    stock = peft_model(**stock_inputs(dataset, dataset.processor(), indices)).loss
    stock.backward()
    expected = gradients(llava)
    llava.zero_grad()
    assert fuse(llava) == 14 if fused else True  # two layers of seven linear maps
    ours = our_loss(llava, dataset, indices)
    ours.backward()
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-5)
    assert_same(gradients(llava), expected)


@pytest.mark.parametrize("policies", [("full", "frozen", "full"), ("frozen", "trained", "frozen")])
def test_every_policy_has_stock_gradients(tmp_path, policies):
    vision, projector, language = policies
    base, dataset = prepare(tmp_path, "gemma", an_image=6)
    llava, _ = learning_model(
        base,
        f"model.vision_policy={vision}",
        f"model.projector_policy={projector}",
        f"model.language_policy={language}",
    )
    llava(**stock_inputs(dataset, dataset.processor(), [3, 5, 4, 0])).loss.backward()
    expected = gradients(llava)
    llava.zero_grad()
    our_loss(llava, dataset, [3, 5, 4, 0], encode_inside=vision == "full").backward()
    found = gradients(llava)
    assert {adapters.part_of(name) for name in found} == {
        part for part, policy in zip(("vision", "projector", "language"), policies, strict=True) if policy != "frozen"
    }
    assert_same(found, expected)


def test_words_alone_may_have_nothing_to_teach_and_still_have_a_gradient(tmp_path):
    base, dataset = prepare(tmp_path, "gemma")
    llava, _ = learning_model(base, "model.language_policy=frozen")
    our_loss(llava, dataset, [0, 1]).backward()
    assert all(not gradient.any() for gradient in gradients(llava).values())


def test_an_image_stands_once_and_nothing_is_padded(prepared):
    _, dataset = prepared
    split, prefix = dataset.split("train"), dataset.image_tokens
    opening = list(split[3].input_ids).index(dataset.image_token_id)
    stream = composer(dataset).stream([3, 5, 7])  # the first two are about one image
    assert stream.image_indices == [0, 1]
    assert stream.positions == int(split.lengths[[3, 5, 7]].sum()) - opening - prefix
    assert len(stream.targets) == sum(int(split[index].supervised.sum()) for index in (3, 5, 7))
    assert stream.sample_indices == [3, 5, 7]


def test_streams_stay_within_the_budget_and_lose_nobody(prepared):
    _, dataset = prepared
    every = list(range(len(dataset.split("train"))))
    for budget in (int(dataset.split("train").lengths.max()), 100, 400):
        streams = list(composer(dataset).streams(every, budget))
        assert [index for stream in streams for index in stream.sample_indices] == every
        assert max(stream.positions for stream in streams) <= budget
    assert len(streams) < len(list(composer(dataset).streams(every, 100)))


def test_an_answer_before_the_image_is_learnt_by_each_conversation(tmp_path):
    """Two conversations with the same words before the same image, some of them supervised: nothing may be shared."""
    _, dataset = prepare(tmp_path, "gemma")
    one = dataset.split("train")[3]
    place = list(one.input_ids).index(dataset.image_token_id)
    supervised = one.supervised.copy()
    supervised[1:place] = True

    class Split:
        def __getitem__(self, row):
            return type(one)(one.id, one.image_index, one.input_ids, supervised)

    twice = Composer(Split(), dataset.image_tokens, dataset.image_token_id).stream([0, 1])
    assert len(twice.targets) == 2 * int(supervised[1:].sum())
    assert twice.positions == 2 * int(dataset.split("train").lengths[3])


def reference_varlen(query, key, value, query_ends, key_ends, *_, scale, window_size, enable_gqa):
    """The kernel's documented function, by the formula: run by run, each under its own mask."""
    assert enable_gqa
    found = []
    for q0, q1, k0, k1 in zip(query_ends, query_ends[1:], key_ends, key_ends[1:], strict=False):
        shape = [part.transpose(0, 1)[None] for part in (query[q0:q1], key[k0:k1], value[k0:k1])]
        distance = torch.arange(k1 - k0 - (q1 - q0), k1 - k0)[:, None] - torch.arange(k1 - k0)
        seen = (distance >= 0) & ((distance <= window_size[0]) if window_size[0] >= 0 else True)
        out = functional.scaled_dot_product_attention(*shape, attn_mask=seen, scale=scale, enable_gqa=True)
        found.append(out[0].transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("window", [None, 3, 8, 100])
def test_the_kernels_arguments_say_what_the_groups_compute(prepared, monkeypatch, window):
    _, dataset = prepared
    stream = composer(dataset).stream(CASES["all kinds"])
    torch.manual_seed(0)
    sizes = ((1, 4, stream.positions, 8), (1, 2, stream.positions, 8), (1, 2, stream.positions, 8))
    parts = [torch.randn(size, requires_grad=True) for size in sizes]
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", reference_varlen)
    monkeypatch.setattr(attention, "_shares_heads", lambda: True)
    found = []
    for runs in (stream.runs.packed(CPU), stream.runs.groups(CPU)):
        out, _ = attention.attend(torch.nn.Module(), *parts, None, runs=runs, scaling=0.3, sliding_window=window)
        found.append((out, *torch.autograd.grad(out.square().sum(), parts)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_kernel_that_is_not_there_is_refused_and_auto_does_without(prepared):
    base, _ = prepared
    llava, _ = learning_model(base)
    language = llava.model.language_model
    assert attention.choose_kernel("auto", language, CPU, torch.float32) == "sdpa"
    with pytest.raises(InputError, match="training.attention=varlen cannot be: torch has no such kernel for cpu"):
        attention.choose_kernel("varlen", language, CPU, torch.float32)


def test_a_language_model_that_sees_later_words_is_refused(prepared):
    base, _ = prepared
    llava, _ = learning_model(base)
    llava.model.language_model.config.use_bidirectional_attention = True
    with pytest.raises(InputError, match="cannot be trained here: it attends both ways"):
        attention.use_streams(llava.model.language_model)


def test_dropout_of_the_adapters_is_drawn_once_for_what_is_shared(tmp_path):
    """Two equal conversations on one image: alone each has draws of its own, in a stream they share the image's."""
    base, dataset = prepare(tmp_path, "qwen2", an_image=6)
    llava, _ = learning_model(base, "model.lora.dropout=0.5")
    torch.manual_seed(0)
    losses = {float(our_loss(llava, dataset, [3, 3]).detach()) for _ in range(4)}
    assert len(losses) == 4
    assert composer(dataset).stream([3, 3]).positions < 2 * int(dataset.split("train").lengths[3])


def test_one_graph_serves_streams_of_all_lengths(tmp_path, monkeypatch):
    """What a GPU compiles, traced here: the kernel is an operation of its own there, and played by one here."""
    from torch._dynamo.testing import CompileCounter

    @torch.library.custom_op("mmgemma_tests::varlen", mutates_args=())
    def varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return query.clone()

    varlen.register_fake(lambda query, *_: torch.empty_like(query))
    varlen.register_autograd(lambda _, gradient: (gradient, None, None))
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda q, k, v, *_, **__: varlen(q, k, v))
    monkeypatch.setattr(attention, "_shares_heads", lambda: True)
    base, dataset = prepare(tmp_path, "gemma", an_image=6)
    llava, _ = learning_model(base)
    language, counter = llava.model.language_model, CompileCounter()
    attention.use_streams(language)
    compiled = torch.compile(language, backend=counter, dynamic=True, fullgraph=True)
    for training in (True, False):
        language.train(training)
        for indices in ([3, 5, 7], [0, 1, 9, 11], [8], list(range(20))):
            stream = composer(dataset).stream(indices).to(CPU, "varlen")
            embeds = language.get_input_embeddings()(stream.input_ids)[None].detach().requires_grad_()
            with torch.set_grad_enabled(training):
                out = compiled(
                    inputs_embeds=embeds,
                    position_ids=stream.position_ids[None],
                    attention_mask=None,
                    use_cache=False,
                    runs=stream.attention,
                ).last_hidden_state
            assert out.shape == (1, stream.positions, 24)
    assert counter.frame_count <= 2 + 2  # one to learn and one to validate; the kernel's bound may cost each once more
