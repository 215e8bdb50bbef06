"""Make the tiny pretrained bases that the sample ships with: `python -m multimodal_gemma.sample.pretrain OUT`.

In three steps, all of them on generated training scenes, none on a held-out one:

1. a tokenizer of Gemma's design learns its vocabulary (under a second);
2. a CLIP encoder learns to name objects and colors patch by patch (about two minutes on two cores);
3. a Gemma-3 learns, through a projector that is then thrown away, to talk about what the frozen encoder sees
   (about twelve minutes; questions of presence stay at chance for a quarter of it, then jump).

Writes OUT/vision and OUT/language, stock transformers folders. The same seed gives the same weights on the same
machine and library versions; floating-point sums differ elsewhere.
"""

import argparse
from pathlib import Path

from multimodal_gemma import logs

VISION_SCENES, LANGUAGE_SCENES = 10_000, 16_000
VISION_SERIES, LANGUAGE_SERIES = 0, 1_000_000  # seeds of the scenes that each base sees


def pretrain(out: Path, *, seed: int, threads: int) -> None:
    """Write `out`/vision and `out`/language: two stock transformers folders.

    Args:
        out: folder of the bases; made if it is missing.
        seed: of the weights.
        threads: of the processor.
    """
    import torch

    from multimodal_gemma.sample import language_base, tokenizer, vision_base
    from multimodal_gemma.sample.scenes import generate

    say = logs.get("pretrain").info
    torch.set_num_threads(threads)

    vision_folder, language_folder = out / "vision", out / "language"
    for folder in (vision_folder, language_folder):
        folder.mkdir(parents=True, exist_ok=True)
    tokenizer.write_tokenizer(language_folder)

    torch.manual_seed(seed)
    scenes = [generate(VISION_SERIES, index, "train") for index in range(VISION_SCENES)]
    encoder = vision_base.pretrain(scenes, say)
    vision_base.write(encoder, vision_folder)

    torch.manual_seed(seed)
    scenes = [generate(LANGUAGE_SERIES, index, "train") for index in range(LANGUAGE_SCENES)]
    features = vision_base.patch_features(encoder, vision_base.pixels(scenes))
    language = language_base.pretrain(language_folder, scenes, features, say)
    language_base.write(language, language_folder)
    for weights in out.glob("*/model.safetensors"):
        weights.chmod(0o644)  # transformers writes 0600
        say(f"{weights}: {weights.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    """Parse the command line and pretrain."""
    parser = argparse.ArgumentParser(description="Pretrain the sample's bases.")
    parser.add_argument("out", type=Path, help="folder to write vision/ and language/ to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logs.setup()
    pretrain(arguments.out, seed=arguments.seed, threads=arguments.threads)


if __name__ == "__main__":
    main()
