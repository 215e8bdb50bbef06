"""Scenes as pictures: 112 x 112 RGB, drawn at three times that size and reduced, so that edges are smooth."""

import io
import math
import random

from PIL import Image, ImageDraw

from multimodal_gemma.sample.scenes import IMAGE_SIZE, Background, Scene, SceneObject

OVERSAMPLING = 3
JPEG_QUALITY = 92

Point = tuple[float, float]


def draw(scene: Scene) -> Image.Image:
    """Return the scene as an RGB image of IMAGE_SIZE pixels a side."""
    side = IMAGE_SIZE * OVERSAMPLING
    canvas = _background(scene.background, side)
    pen = ImageDraw.Draw(canvas)
    for thing in scene.objects:
        _draw_object(pen, thing)
    image = canvas.reduce(OVERSAMPLING)
    return _speckle(image, scene.background.texture) if scene.background.style == "speckled" else image


def to_jpeg(scene: Scene) -> bytes:
    """Return the scene as a JPEG file without colour subsampling (small objects keep their color)."""
    buffer = io.BytesIO()
    draw(scene).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _background(background: Background, side: int) -> Image.Image:
    if background.style == "gradient":
        ramp = Image.linear_gradient("L").rotate(background.angle * 2).resize((side, side))  # quarter turns
        return Image.composite(
            Image.new("RGB", (side, side), background.first), Image.new("RGB", (side, side), background.second), ramp
        )
    canvas = Image.new("RGB", (side, side), background.first)
    if background.style == "striped":
        pen, step = ImageDraw.Draw(canvas), side // 7
        slope = math.radians(background.angle)
        along, across = (math.cos(slope) * side, math.sin(slope) * side), (-math.sin(slope), math.cos(slope))
        for offset in range(-side, side, step):
            x, y = side / 2 + across[0] * offset, side / 2 + across[1] * offset
            ends = ((x - along[0], y - along[1]), (x + along[0], y + along[1]))
            pen.line(ends, fill=background.second, width=step // 2)
    return canvas


def _speckle(image: Image.Image, texture: int) -> Image.Image:
    """Add fine grain: seeded noise of small amplitude, over objects too."""
    grain = random.Random(texture).randbytes(IMAGE_SIZE * IMAGE_SIZE)
    noise = Image.frombytes("L", image.size, grain).convert("RGB")
    return Image.blend(image, noise, 0.08)


def _draw_object(pen: ImageDraw.ImageDraw, thing: SceneObject) -> None:
    x, y, radius = thing.x * OVERSAMPLING, thing.y * OVERSAMPLING, thing.size * OVERSAMPLING / 2
    square = (x - radius, y - radius, x + radius, y + radius)
    if thing.kind == "ball":
        pen.ellipse(square, fill=thing.rgb)
    elif thing.kind == "ring":
        pen.ellipse(square, outline=thing.rgb, width=round(radius * 0.36))
    else:
        turn = math.radians(thing.tilt)
        sine, cosine = math.sin(turn), math.cos(turn)
        for outline in _OUTLINES[thing.kind]:
            points = [(x + radius * (u * cosine - v * sine), y + radius * (u * sine + v * cosine)) for u, v in outline]
            pen.polygon(points, fill=thing.rgb)


def _arc(centre: Point, radius: float, start: float, stop: float, steps: int = 24) -> list[Point]:
    angles = (math.radians(start + (stop - start) * step / steps) for step in range(steps + 1))
    return [(centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle)) for angle in angles]


def _star() -> list[Point]:
    radii = (1.0, 0.42)
    corners = ((radii[corner % 2], math.radians(36 * corner - 90)) for corner in range(10))
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in corners]


# Polygons in units of half the object's size; y grows downwards as in the image.
_OUTLINES: dict[str, list[list[Point]]] = {
    "box": [[(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]],
    "triangle": [[(0, -0.95), (0.95, 0.8), (-0.95, 0.8)]],
    "star": [_star()],
    "heart": [_arc((-0.46, -0.35), 0.5, 150, 340) + _arc((0.46, -0.35), 0.5, 200, 390) + [(0, 0.95)]],
    "cross": [
        [(-0.3, -0.95), (0.3, -0.95), (0.3, 0.95), (-0.3, 0.95)],
        [(-0.95, -0.3), (0.95, -0.3), (0.95, 0.3), (-0.95, 0.3)],
    ],
    "moon": [_arc((0.1, 0), 0.95, 60, 300) + _arc((0.6, 0), 0.82, 270, 90)],
    "arrow": [[(-0.95, -0.28), (0.1, -0.28), (0.1, -0.8), (0.95, 0), (0.1, 0.8), (0.1, 0.28), (-0.95, 0.28)]],
    "umbrella": [
        _arc((0, 0), 0.95, 180, 360),
        [(-0.1, -0.05), (0.1, -0.05), (0.1, 0.95), (-0.4, 0.95), (-0.4, 0.72), (-0.1, 0.72)],
    ],
}
