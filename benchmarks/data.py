"""How fast data gets from a mirror into shards, from shards into arrays, and from text into tokens.

    python benchmarks/data.py [preprocess|download|tokens|reading|all]
    python benchmarks/data.py --json [--images N]       preprocess and download, as one object

The photographs are made here: 640 x 480 pixels of smooth colour with grain, JPEG at quality 90, about 100 KB each.
Figures are printed as JSON, one object a measurement; times are wall time, memory is the largest resident set of the
process that did the work and of its workers.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LATENCY = 0.03  # seconds before each answer of the mirror
PUBLISHED = 157_712  # conversations of LLaVA-Instruct-150K
PLANNED = {"13 minutes": 13 * 60e3 / 473_136, "20 minutes": 20 * 60e3 / 473_136}  # ms a sample, whole recipe on an A100
WORDS = "the a in of is on and with man woman dog cat table red blue street standing image there two people near white"


def photograph(seed: int) -> bytes:
    """Return a JPEG that costs about as much to decode as a photograph."""
    numbers = np.random.default_rng(seed)
    coarse = numbers.integers(0, 255, (12, 16, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC), np.int16)
    grained = np.clip(smooth + numbers.normal(0, 6, (480, 640, 1)), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(grained).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def conversation(number: int, image: str | None, pairs: int, words: int) -> dict[str, Any]:
    """Return a conversation with `pairs` questions and answers of about `words` words each."""
    numbers = np.random.default_rng(number)
    said = []
    for pair in range(pairs):
        tag = "<image>\n" if image and not pair else ""
        lengths = (8, max(int(numbers.gamma(2.0, words / 2.0)), 1))
        question, answer = (" ".join(numbers.choice(WORDS.split(), length)) for length in lengths)
        said += [{"from": "human", "value": f"{tag}{question}?"}, {"from": "gpt", "value": f"{answer}."}]
    return {"id": str(number), "conversations": said, **({"image": image} if image else {})}


def raw_dataset(folder: Path, conversations: list[dict[str, Any]], images: Iterator[tuple[str, bytes]]) -> Path:
    """Write a raw-dataset artifact."""
    from multimodal_gemma import files, manifest
    from multimodal_gemma.data import conversations as talk
    from multimodal_gemma.data import formats
    from multimodal_gemma.data.shards import write_image_shards

    folder.mkdir(parents=True)
    published = folder / "conversations.json"
    published.write_text(json.dumps(conversations))
    rows = formats.read(published, published.name)
    talk.write(folder / talk.FILE, [row.read for row in rows if isinstance(row.read, talk.Conversation)])
    write_image_shards(folder, images)
    files.write_jsonl(folder / "missing.jsonl", [])
    manifest.write(folder, "raw-dataset", config={})
    return folder


def base_models(folder: Path) -> Path:
    """Write a base-models artifact: the packaged language model, and an image processor of 224 pixels."""
    from transformers import CLIPImageProcessor

    from multimodal_gemma import config, manifest
    from multimodal_gemma.stages import download

    download.run(config.compose("sample"), "models", folder)
    vision = folder / "vision"
    CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}).save_pretrained(vision)
    facts = json.loads((vision / "config.json").read_text())
    facts.update(image_size=224, patch_size=14)
    (vision / "config.json").write_text(json.dumps(facts))
    manifest.write(folder, "base-models", config={})
    return folder


def alone(work: str, *arguments: str) -> dict[str, Any]:
    """Run one measurement in a process of its own, so that its peak memory is its own."""
    done = subprocess.run([sys.executable, __file__, work, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def peak() -> float:
    """Return the largest resident sets so far, of this process and of the largest of its children, in MB."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(one).ru_maxrss for one in who) / 1024


def processed(raw: str, models: str, workers: str) -> None:
    """Preprocess an artifact and print seconds, processor seconds and peak memory."""
    from multimodal_gemma import config
    from multimodal_gemma.stages import preprocess

    settings = config.compose("sample", [f"data.workers={workers}", "data.validation_fraction=0"])
    with tempfile.TemporaryDirectory(dir=Path(raw).parent) as output:
        start, before = time.monotonic(), os.times()
        summary = preprocess.run(settings, Path(raw), Path(models), None, Path(output) / "out")
        seconds, after = time.monotonic() - start, os.times()
        used = sum(after[:4]) - sum(before[:4])
        ids = [summary.folder / part / "input_ids.npy" for part in ("train", "val")]
        tokens = sum(len(np.load(path, mmap_mode="r")) for path in ids)
        print(json.dumps({"seconds": seconds, "cpu": used, "peak_mb": peak(), "tokens": tokens, **summary.numbers}))


def naive(photographs: list[bytes], models: Path, count: int) -> float:
    """Return processor seconds an image of the obvious way: open, stock image processor, one after another."""
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor.from_pretrained(models / "vision")
    start = time.process_time()
    for number in range(count):
        image = Image.open(io.BytesIO(photographs[number % len(photographs)])).convert("RGB")
        processor(image, return_tensors="np")
    return (time.process_time() - start) / count


def measure_preprocess(base: Path, most: int = 20_000) -> dict[str, Any]:
    """Images a second a core, and memory at a tenth of `most` images and at `most`."""
    models = base_models(base / "models")
    with multiprocessing.get_context("spawn").Pool() as pool:
        photographs = pool.map(photograph, range(200))  # reused under other bytes: each is decoded anew
    cores = len(os.sched_getaffinity(0))
    found, counts = {}, (most // 10, most)
    for count in counts:
        names = [f"{number:012d}.jpg" for number in range(count)]
        said = [conversation(number, name, 1, 20) for number, name in enumerate(names)]
        # Bytes behind the end of a JPEG are ignored, and make of the same photograph another file.
        images = ((name, photographs[number % 200] + name.encode()) for number, name in enumerate(names))
        raw = raw_dataset(base / f"raw-{count}", said, images)
        found[count] = alone("processed", str(raw), str(models), str(cores))
    few, more = (found[count] for count in counts)
    images = counts[1] - counts[0]  # starting the interpreter and its workers costs both the same
    per_core = images / (more["cpu"] - few["cpu"])
    return {
        "what": "preprocess",
        "photograph_kb": round(sum(map(len, photographs)) / 200 / 1e3, 1),
        "cores": cores,
        "images": counts,
        "images_per_second_per_core": round(images / (more["seconds"] - few["seconds"]) / cores, 1),
        "images_per_cpu_second": round(per_core, 1),
        "ratio": round(naive(photographs, models, 200) * per_core, 2),
        "peak_mb": [round(one["peak_mb"]) for one in (few, more)],
        "growth": round(more["peak_mb"] / few["peak_mb"] - 1, 3),
    }


def mirror(body: bytes) -> ThreadingHTTPServer:
    """Serve one photograph under every name, each answer after LATENCY."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            """Answer late."""
            time.sleep(LATENCY)
            head = f'HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nETag: "1"\r\n\r\n'
            self.wfile.write(head.encode() + body)

    class Listener(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    return Listener(("127.0.0.1", 0), Handler)


def serve(pipe: Any) -> None:
    """Serve until the process is ended."""
    server = mirror(photograph(0))
    pipe.send(server.server_port)
    server.serve_forever()


def measure_download(count: int = 1_000) -> dict[str, Any]:
    """The engine against one request after another, each on a new connection and on a kept one."""
    import requests

    from multimodal_gemma.config.schema import DataConfig
    from multimodal_gemma.data import sources
    from multimodal_gemma.data.collect import fetch_all

    os.environ["MMGEMMA_ALLOW_LOOPBACK"] = "1"
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    url = f"http://127.0.0.1:{ours.recv()}/images"
    names = [f"{number:012d}.jpg" for number in range(count)]

    def timed(work: Callable[[], object], images: int) -> float:
        start = time.monotonic()
        work()
        return images / (time.monotonic() - start)

    few = names[:100]
    fresh = timed(lambda: [requests.get(f"{url}/{name}", timeout=10).content for name in few], len(few))
    session = requests.Session()
    kept = timed(lambda: [session.get(f"{url}/{name}", timeout=10).content for name in few], len(few))
    source, asked = sources.open(url, DataConfig()), [(name, name) for name in names]
    engine = timed(lambda: [0 for _ in fetch_all(source, asked, DataConfig())], count)
    process.terminate()
    rates = {"sequential": fresh, "sequential_kept_connection": kept, "engine": engine}
    return {
        "what": "download",
        "latency_ms": LATENCY * 1e3,
        "images_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "times_sequential": round(engine / fresh, 1),
        "times_kept_connection": round(engine / kept, 1),
    }


def measure_tokens(base: Path, count: int = PUBLISHED) -> dict[str, Any]:
    """Tokenize as many conversations as are published, with lengths like theirs, and read shuffled batches back."""
    models = base_models(base / "models-tokens")
    shapes = np.random.default_rng(0).choice(3, count, p=(0.36, 0.15, 0.49))  # talks, descriptions, reasonings
    said = [
        conversation(number, None, *((4, 11), (1, 90), (1, 100))[shape]) for number, shape in enumerate(shapes.tolist())
    ]
    raw = raw_dataset(base / "raw-tokens", said, iter(()))
    cores = len(os.sched_getaffinity(0))
    found = alone("processed", str(raw), str(models), str(cores))
    return {
        "what": "tokens",
        "conversations": count,
        "seconds": round(found["seconds"], 1),
        "conversations_per_second": round(count / found["seconds"]),
        "peak_mb": round(found["peak_mb"]),
        "tokens": round(found["tokens"]),
        "array_mb": round(found["tokens"] * 5 / 1e6, 1),
    }


def measure_reading(base: Path, count: int = 20_000, batch: int = 40) -> dict[str, Any]:
    """Read shuffled batches as training does: token rows always, pixels where the encoder runs at every step."""
    from multimodal_gemma import config
    from multimodal_gemma.data.processed import ProcessedDataset
    from multimodal_gemma.stages import preprocess

    models = base_models(base / "models-reading")
    names = [f"{number:012d}.jpg" for number in range(count)]
    said = [conversation(number, name, 3, 30) for number, name in enumerate(names)]
    body = [photograph(number) for number in range(20)]
    raw = raw_dataset(base / "raw-reading", said, ((name, body[n % 20]) for n, name in enumerate(names)))
    preprocess.run(config.compose("sample"), raw, models, None, base / "reading")
    dataset = ProcessedDataset(base / "reading")
    train = dataset.split("train")
    order = np.random.default_rng(0).permutation(len(train))
    batches = [order[start : start + batch].tolist() for start in range(0, len(order) - batch, batch)]

    def milliseconds(read: Callable[[list[int]], object]) -> float:
        best = float("inf")
        for _ in range(3):  # the first time finds the files in the page cache, as every epoch but the first does
            start = time.process_time()
            for rows in batches:
                read(rows)
            best = min(best, time.process_time() - start)
        return best / len(batches) * 1e3

    def pixels(rows: list[int]) -> np.ndarray:
        return np.stack([dataset.image(int(train.image_indices[row])) for row in rows])

    tokens, images = milliseconds(lambda rows: [train[row] for row in rows]), milliseconds(pixels)
    return {
        "what": "reading",
        "conversations": len(train),
        "images": dataset.image_count,
        f"token_rows_ms_a_batch_of_{batch}": round(tokens, 3),
        f"pixels_ms_a_batch_of_{batch}": round(images, 2),
        # What is read at every step, beside the steps that the plan promises of one A100.
        "planned_step_ms": {name: round(step * batch, 1) for name, step in PLANNED.items()},
        "share_with_cached_features": {name: round(tokens / (step * batch), 4) for name, step in PLANNED.items()},
        "share_with_encoder_in_the_step": {
            name: round((tokens + images) / (step * batch), 4) for name, step in PLANNED.items()
        },
    }


def main() -> None:
    """Run the measurements that are asked for."""
    if sys.argv[1:2] == ["processed"]:
        processed(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = ("preprocess", "download", "tokens", "reading")
    parser.add_argument("what", nargs="?", default="all", choices=[*what, "all"])
    parser.add_argument("--json", action="store_true", help="preprocess and download as one JSON object")
    parser.add_argument("--images", type=int, default=20_000, help="of the larger dataset (default: 20000)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        works: dict[str, Callable[[], dict[str, Any]]] = {
            "download": measure_download,
            "preprocess": lambda: measure_preprocess(base, args.images),
            "tokens": lambda: measure_tokens(base),
            "reading": lambda: measure_reading(base),
        }
        if args.json:
            made, fetched = works["preprocess"](), works["download"]()
            told = {
                "ratio": made["ratio"],  # processor time, the obvious way over ours
                "preprocess_images_per_s_per_core": made["images_per_cpu_second"],
                "rss_growth": made["growth"],
                "download_ratio": fetched["times_sequential"],
                "preprocess": made,
                "download": fetched,
            }
            print(json.dumps(told))
            return
        for name, work in works.items():
            if args.what in (name, "all"):
                print(json.dumps(work()))


if __name__ == "__main__":
    main()
