"""The whole configuration in one place: every key, its unit, and why that default.

The defaults are the recipe `llava-150k`; the other presets are small differences of it (presets/*.yaml).
"""

from __future__ import annotations

import dataclasses

from multimodal_gemma.config.fields import choice, location, locations, number

COCO = "https://s3.amazonaws.com/images.cocodataset.org"  # images.cocodataset.org itself fails TLS by its own name
LLAVA = "hf://datasets/liuhaotian/LLaVA-Instruct-150K@9d451dc7629cfe0469f6ae4432b765cd603d5fcb"
HARDWARE = ("cpu", "l4", "a100", "a100-spot", "a100-80gb", "h100", "custom")  # what each asks for: hardware.py


@dataclasses.dataclass
class SampleConfig:
    """The generated scenes behind `sample://`."""

    train_scenes: int = number(2000, low=10)  # scenes with conversations
    held_out_scenes: int = number(120, low=4)  # scenes that only the benchmarks ask about
    seed: int = number(7, low=0)  # another seed draws other scenes


@dataclasses.dataclass
class DataConfig:
    """Conversations and their images."""

    conversations: list[str] = locations(  # noqa: RUF009 - a field
        f"{LLAVA}/llava_instruct_150k.json"
    )  # sets, here one of 157,712; `URI#COUNT` draws so many of a set, `URI*WEIGHT` so many times its number
    images: list[str] = locations(  # noqa: RUF009 - a field
        f"{COCO}/train2017/"
    )  # base that a conversation's image name is appended to; one for all sets, or one for each
    image_roots: list[str] = dataclasses.field(
        default_factory=list
    )  # PREFIX=LOCATION each: where image names that begin so lie, e.g. 'coco/train2017/=s3://bucket/train2017/'
    sample: SampleConfig = dataclasses.field(default_factory=SampleConfig)
    require_commits: bool = False  # refuse a revision of a hub that is a branch: what it names may change
    locked: list[str] = dataclasses.field(default_factory=list)  # what each source must hold: --locked FILE writes it
    conversations_sha256: str = ""  # what the file of conversations must have; empty: not compared
    images_sha256: str = ""  # likewise of an archive of images
    max_file_bytes: int = number(200_000_000_000, low=1)  # of one archive or question file
    shard_bytes: int = number(256_000_000, low=1, high=256_000_000)  # image bytes in a shard of a raw dataset
    allowed_hosts: list[str] = dataclasses.field(
        default_factory=lambda: ["huggingface.co", "s3.amazonaws.com", "raw.githubusercontent.com"]
    )  # hosts that https:// may name; a download from anywhere else is refused
    max_missing_fraction: float = number(0.001, low=0, high=1)  # images that may be lost before download fails
    max_faulty_fraction: float = number(0.001, low=0, high=1)  # conversations of a set that may break the format
    columns: dict[str, str] = dataclasses.field(
        default_factory=dict
    )  # a set's own names of id, image, images, conversations, messages, texts, e.g. {image: picture}
    download_threads: int = number(16, low=1, high=256)  # images asked for at once
    limit: int | None = number(None, low=1)  # conversations drawn by a seeded hash; null takes all
    limit_seed: int = number(42, low=0)  # another seed draws others
    min_turns: int = number(1, low=1)  # questions and answers, both counted
    max_turns: int | None = number(None, low=1)
    min_characters: int = number(0, low=0)  # of all turns together
    max_characters: int | None = number(None, low=1)
    kinds: list[str] = dataclasses.field(
        default_factory=lambda: ["single", "multi", "text"]
    )  # one question about an image, several, or no image at all
    max_image_bytes: int = number(20_000_000, low=1)  # a larger file is no photograph
    max_image_pixels: int = number(50_000_000, low=1)  # decoded size; a bomb is larger
    validation_fraction: float = number(0.02, low=0, high=0.5)  # share of images held out, by image
    split_seed: int = number(42, low=0)  # another seed holds other images out
    image_position: str = choice("first", "as-written")  # first: before the question, as LLaVA's own trainer has it
    image_fit: str = choice(
        "stock", "crop", "pad", "squeeze"
    )  # how a picture becomes a square: as the encoder's own processor does; its middle; whole with borders; distorted
    pixels: str = choice("raw", "jpeg")  # how the processed pictures are kept; jpeg: a fifth of the disk, not exact
    max_text_tokens: int = number(1024, low=16)  # text tokens a conversation may have; longer ones are cut by turns
    contamination: str = choice("fail", "drop", "allow")  # training images that a benchmark asks about
    work_uri: str = ""  # s3:// or gs:// prefix that keeps finished shards and slices beyond the pod that made them
    workers: int | None = number(None, low=1)  # processes that decode and tokenize; null: one a core


@dataclasses.dataclass
class BenchmarksConfig:
    """The questions a model is scored on. An empty location leaves that benchmark out."""

    pope: str = location(
        "https://raw.githubusercontent.com/AoiDragon/POPE/08d957b917e5a378a2f99d35b6293c536a66298b/output/coco/"
    )  # the three files
    vqa: str = location("https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/")  # questions and annotations
    images: str = location(f"{COCO}/val2014/")
    instances: str = location("")  # objects in POPE's images: COCO's instances and captions; empty: CHAIR is left out
    vqa_questions: int | None = number(5000, low=1)  # seeded draw from the 214,354; null asks all


@dataclasses.dataclass
class LoraConfig:
    """Low-rank adapters on the language model's linear layers (Hu et al., 2021)."""

    rank: int = number(64, low=1)
    alpha: int = number(128, low=1)  # update is scaled by alpha / rank
    dropout: float = number(0.1, low=0, high=0.9)  # 0 is measurably faster
    targets: list[str] = dataclasses.field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )  # of the language model only


@dataclasses.dataclass
class ModelConfig:
    """What is joined, and which part learns how."""

    vision: str = location("hf://openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41")
    language: str = location(
        "hf://google/gemma-3-270m@9b0cfec892e2bc2afd938c98eabe4e4a7b1e0ca1"
    )  # any causal model that stock Llava can wrap
    projector: str = location("")  # trained model whose projector to start from, models:/NAME/3 too; empty: fresh
    adapter: str = location("")  # trained model to go on from, its adapters and projector, models:/NAME/3 too
    vision_feature_layer: int = number(-2, high=-1)  # -2 as LLaVA; -1 the last
    vision_policy: str = choice("frozen", "full")
    projector_policy: str = choice("trained", "frozen")
    language_policy: str = choice("lora", "full", "frozen")
    language_quantization: str = choice("none", "nf4")  # nf4: the frozen weights in 4 bits while training (QLoRA)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)


@dataclasses.dataclass
class TrainingConfig:
    """The optimiser, its schedule and the shape of a step."""

    epochs: int = number(3, low=1)
    max_steps: int | None = number(None, low=1)  # optimiser steps; null: as many as the epochs have
    batch_size: int = number(40, low=1)  # conversations an optimiser step, over all ranks
    batch_tokens: int | str = number(
        "auto", low=64
    )  # positions a forward pass, image tokens counted; auto: a whole step or what a GPU's memory holds; less on a CPU
    projector_lr: float = number(1e-3, low=0)  # learns from random weights: five times the adapters' rate
    lora_lr: float = number(2e-4, low=0)  # bends pretrained weights gently
    language_lr: float = number(2e-5, low=0)  # language_policy=full
    vision_lr: float = number(2e-6, low=0)  # vision_policy=full
    weight_decay: float = number(0.01, low=0)
    warmup_fraction: float = number(0.03, low=0, high=1)  # of all steps, linear from zero; then linear to zero
    max_grad_norm: float = number(1.0, low=0)
    seed: int = number(42, low=0)
    precision: str = choice("auto", "fp32", "bf16")  # auto: bf16 where a GPU has it
    device: str = choice("auto", "cpu", "cuda")
    compile: str = choice("auto", "on", "off")  # the language model only; auto: on a GPU that has the one kernel
    attention: str = choice("auto", "varlen", "sdpa")  # auto: one kernel for all lengths where a GPU has it
    feature_cache: str = choice(
        "auto", "none", "device", "memory", "disk"
    )  # where frozen features are kept, computed once an image; auto: the first of device, memory, disk that has room
    cache_folder: str = ""  # of feature_cache=disk; empty: in the output until the model is finished
    augmentation: str = choice(
        "none", "crop-jitter"
    )  # other crops and light in every epoch, never mirrored; costs the feature cache
    gradient_checkpointing: bool = False  # slower, and a longer sample fits
    validations_per_epoch: int = number(4, low=1)
    best_by: str = choice(
        "auto", "loss", "yes-no"
    )  # which validated checkpoint becomes the model; yes-no: by the validation answers that begin with a yes or a no,
    # right ones of each kind weighing alike; auto: so where there are 20 of each kind, else by the loss
    patience: int = number(3, low=1)  # validations without a better loss or better answers before training stops
    keep_best: int = number(2, low=1)  # best checkpoints kept beside the last
    checkpoint_minutes: float = number(10.0, low=0)  # between checkpoints, beside those of validations
    checkpoint_uri: str = ""  # s3://BUCKET/PREFIX that gets a copy of each checkpoint: spot nodes lose their disks
    sample_images: int = number(4, low=0)  # validation images that are described at every validation, to look at
    trackers: list[str] = dataclasses.field(default_factory=lambda: ["mlflow"])  # of accelerate; [] is none
    nodes: int = number(1, low=1)  # 1: where the command runs; more: a TrainJob on so many nodes, see section nodes


@dataclasses.dataclass
class ResourcesConfig:
    """What the pods of training and evaluation ask of a cluster. Empty: what the hardware stands for."""

    hardware: str = choice(*HARDWARE)  # of a cluster; custom: only what is said here
    accelerator: str = "nvidia.com/gpu"  # resource name
    accelerator_count: int | None = number(None, low=0)  # a pod; above 0 the run never falls back to a CPU
    cpu: str = ""  # cores, requested and limited, e.g. 8
    memory: str = ""  # requested and limited, e.g. 32Gi
    node_selector: dict[str, str] = dataclasses.field(default_factory=dict)  # labels that a node must have
    tolerations: list[dict[str, str]] = dataclasses.field(default_factory=list)  # taints that are accepted
    spot: bool | None = None  # nodes may be reclaimed: checkpoints leave the node, and a TrainJob trains where it can


@dataclasses.dataclass
class NodesConfig:
    """What a node of a training on several asks of the cluster. Empty: what section resources says."""

    work_uri: str = ""  # s3://BUCKET/PREFIX through which nodes get data and give the model; needed by training.nodes
    train_job: bool = False  # a TrainJob also for one node: set by preflight on spot nodes with Kubeflow Trainer
    runtime: str = "multimodal-gemma"  # the TrainingRuntime, see manifests/trainer
    queue: str = ""  # a LocalQueue of Kueue, e.g. multimodal-gemma; empty: no queue
    accelerator: str = "nvidia.com/gpu"  # resource name
    accelerator_count: int | None = number(None, low=0)  # a node, and as many processes
    cpu: str = ""  # cores, e.g. 10
    memory: str = ""  # e.g. 64Gi
    scratch: str = ""  # of a volume of the node's own, made with its pod, e.g. 100Gi; empty: the runtime's, on its disk
    scratch_class: str = ""  # its StorageClass; empty: the cluster's default
    node_selector: dict[str, str] = dataclasses.field(default_factory=dict)  # labels that a node must have
    tolerations: list[dict[str, str]] = dataclasses.field(default_factory=list)  # taints that are accepted


@dataclasses.dataclass
class EvaluationConfig:
    """How questions are asked and scored."""

    suffix: str = "\nAnswer the question using a single word or phrase."  # LLaVA-1.5's short-answer prompt
    max_new_tokens: int = number(16, low=1)
    description: str = "Describe the image concisely."  # what CHAIR asks for; LLaVA's wording
    description_tokens: int = number(128, low=1)  # longest description
    batch_tokens: int = number(16_384, low=64)  # positions a forward pass
    confidence: float = number(0.95, low=0.5, high=0.999)  # of the intervals, clustered by image
    device: str = choice("auto", "cpu", "cuda")
    precision: str = choice("auto", "fp32", "bf16")
    lmms: list[str] = dataclasses.field(default_factory=list)  # tasks of lmms-eval, e.g. [gqa,mme]; [] does without it
    lmms_command: str = "lmms-eval"  # its program on the machine that evaluates: a path, or a name on PATH
    lmms_include: str = ""  # folder there with further tasks, as lmms-eval's --include_path


@dataclasses.dataclass
class RegistryConfig:
    """Where runs and versions are recorded, and what a champion must show."""

    tracking_uri: str = ""  # MLflow; empty: MLFLOW_TRACKING_URI
    experiment: str = "multimodal-gemma"
    name: str = "multimodal-gemma"  # the registered model
    floors: dict[str, float] | None = dataclasses.field(
        default_factory=lambda: {"pope_accuracy": 0.55, "vqa_over_baseline": 0.0}
    )  # smallest value by metric; null: no absolute floor
    rule: str = choice("not-worse", "better")  # what a new champion must be; better: in one of compared, beyond noise
    compared: list[str] = dataclasses.field(
        default_factory=lambda: ["pope_accuracy", "vqa_accuracy"]
    )  # must not be worse than the champion's beyond the paired interval
    margins: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"pope_accuracy": 0.05, "vqa_accuracy": 0.05}
    )  # furthest below the best champion so far, by metric: many losses within the noise must not add up
    required: list[str] = dataclasses.field(default_factory=list)  # metrics that must be there too


@dataclasses.dataclass
class ExportConfig:
    """What is shipped."""

    dtype: str = choice("bfloat16", "float32")  # of the merged weights
    private: bool = True  # of a repository that is made on a hub
    terms: str = ""  # file with the Gemma Terms of Use, which go with a Gemma that is passed on
    publish: str = ""  # s3://BUCKET/PREFIX or hf://ORG/NAME that gets every export whose gate passed; empty: none
    formats: list[str] = dataclasses.field(
        default_factory=lambda: ["adapter"], metadata={"options": ("adapter", "int8", "space")}
    )  # beside the merged model: what was trained alone; the model in eight bits; a Space of the Hub that shows it


@dataclasses.dataclass
class ServingConfig:
    """How a model is tried: `mmgemma ask`, `describe` and `demo`. Pictures have the limits of section data."""

    max_new_tokens: int = number(128, low=1)  # longest answer
    temperature: float = number(0.0, low=0)  # 0: the likeliest word each time
    top_p: float = number(1.0, low=0.01, high=1)  # with a temperature: share of the probability drawn from
    max_question_characters: int = number(4_000, low=1)  # a longer question is refused
    queue: int = number(16, low=1)  # people who may wait for an answer of the demo; the next one is turned away


@dataclasses.dataclass
class Config:
    """One run of the pipeline."""

    preset: str = "llava-150k"
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    benchmarks: BenchmarksConfig = dataclasses.field(default_factory=BenchmarksConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    resources: ResourcesConfig = dataclasses.field(default_factory=ResourcesConfig)
    nodes: NodesConfig = dataclasses.field(default_factory=NodesConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    registry: RegistryConfig = dataclasses.field(default_factory=RegistryConfig)
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)
    serving: ServingConfig = dataclasses.field(default_factory=ServingConfig)

    @property
    def delegates(self) -> bool:
        """Whether train-model hands its work to a TrainJob."""
        return self.training.nodes > 1 or self.nodes.train_job
