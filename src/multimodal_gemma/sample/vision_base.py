"""The vision base: a CLIP encoder of 3 layers that names what each patch shows.

Real CLIP brings features from which a fresh projector learns at once. This one gets such features by the shortest
way: each patch is asked for the kind and the color of the object on it, through linear heads that are thrown away. A
penalty holds the features at mean 0 and variance 1, because a projector of random weights does not learn from badly
scaled ones; what mean is left goes into the last layer's bias.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from multimodal_gemma.sample.drawing import draw
from multimodal_gemma.sample.scenes import COLORS, IMAGE_SIZE, KINDS, Scene

PATCH = 16  # pixels
GRID = IMAGE_SIZE // PATCH
WIDTH = 96
STEPS, BATCH, PEAK_LR = 1000, 96, 2e-3
STANDARD_WEIGHT = 0.1  # of the penalty on features that are not standardised
IGNORED = -100  # target of a patch that shows no more than an object's rim
# CLIP's own normalisation, which CLIPImageProcessor applies.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def configuration() -> CLIPVisionConfig:
    """Return the encoder's shape: 3 layers of width 96, 49 patch tokens and CLS."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=WIDTH,
        architectures=["CLIPVisionModel"],
    )


def pixels(scenes: list[Scene]) -> Tensor:
    """Draw scenes; return uint8 (scenes, 3, IMAGE_SIZE, IMAGE_SIZE)."""
    raw = b"".join(draw(scene).tobytes() for scene in scenes)
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    return flat.view(-1, IMAGE_SIZE, IMAGE_SIZE, 3).permute(0, 3, 1, 2).contiguous()


def normalize(images: Tensor) -> Tensor:
    """Return uint8 (images, 3, h, w) as CLIPImageProcessor would hand it over, float32."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def patch_targets(scene: Scene) -> tuple[list[int], list[int]]:
    """Return kind and color of the object on each patch, row by row: 0 is background, IGNORED is a rim."""
    kinds, colors = [0] * GRID**2, [0] * GRID**2
    for thing in scene.objects:
        for patch in range(GRID**2):
            row, column = divmod(patch, GRID)
            covered = _overlap(thing.x, thing.size, column) * _overlap(thing.y, thing.size, row)
            if covered >= 0.35 or (row, column) == (int(thing.y // PATCH), int(thing.x // PATCH)):
                kinds[patch], colors[patch] = 1 + KINDS.index(thing.kind), 1 + list(COLORS).index(thing.color)
            elif covered > 0 and kinds[patch] == 0:
                kinds[patch] = colors[patch] = IGNORED
    return kinds, colors


def pretrain(scenes: list[Scene], say: Callable[[str], None]) -> CLIPVisionModel:
    """Return an encoder that names objects; takes two to three minutes on two cores."""
    encoder = CLIPVisionModel(configuration())
    kind_head, color_head = nn.Linear(WIDTH, 1 + len(KINDS)), nn.Linear(WIDTH, 1 + len(COLORS))
    weights = [*encoder.parameters(), *kind_head.parameters(), *color_head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=PEAK_LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, STEPS, pct_start=0.08)
    images, targets = pixels(scenes), torch.tensor([patch_targets(scene) for scene in scenes])
    rng = random.Random(0)
    encoder.train()
    for step in range(1, STEPS + 1):
        chosen = torch.tensor(rng.sample(range(len(scenes)), BATCH))
        features = encoder(normalize(images[chosen])).last_hidden_state[:, 1:]  # (BATCH, patches, WIDTH)
        kinds, colors = targets[chosen].unbind(1)  # (BATCH, patches) each
        flat = features.flatten(0, 1)
        naming = nn.functional.cross_entropy(kind_head(flat), kinds.flatten(), ignore_index=IGNORED)
        naming = naming + nn.functional.cross_entropy(color_head(flat), colors.flatten(), ignore_index=IGNORED)
        spread = flat.mean(0).square().mean() + (flat.std(0) - 1).square().mean()
        optimizer.zero_grad()
        (naming + STANDARD_WEIGHT * spread).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            on_object = kinds.flatten() > 0
            right = (kind_head(flat).argmax(-1) == kinds.flatten())[on_object].float().mean()
            right_color = (color_head(flat).argmax(-1) == colors.flatten())[on_object].float().mean()
            named = f"kind {right:.1%}, color {right_color:.1%}"
            say(f"vision {step}/{STEPS}: loss {naming:.3f}, {named}, not standard {spread:.3f}")
    encoder.eval()
    _centre(encoder, images[:1024])
    return encoder


@torch.no_grad()
def patch_features(encoder: CLIPVisionModel, images: Tensor) -> Tensor:
    """Return the features of uint8 images, (images, patches, WIDTH), without CLS."""
    return torch.cat([encoder(normalize(some)).last_hidden_state[:, 1:] for some in images.split(256)])


def write(encoder: CLIPVisionModel, folder: Path) -> None:
    """Write the stock folder: config.json, model.safetensors, preprocessor_config.json."""
    encoder.save_pretrained(folder)
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "do_convert_rgb": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=1) + "\n", encoding="utf-8")


def _overlap(centre: float, size: float, cell: int) -> float:
    """Return the share of a patch's side that an object's extent covers along one axis."""
    low, high = max(centre - size / 2, cell * PATCH), min(centre + size / 2, (cell + 1) * PATCH)
    return max(0.0, high - low) / PATCH


@torch.no_grad()
def _centre(encoder: CLIPVisionModel, images: Tensor) -> None:
    """Take the mean out of the patch features, exactly, through the last layer's bias."""
    mean = patch_features(encoder, images).flatten(0, 1).mean(0)
    encoder.encoder.layers[-1].mlp.fc2.bias -= mean
