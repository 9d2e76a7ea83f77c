"""The pure-gradient map and the crop once more, slowly, pixel by pixel and window by window; no workbench."""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from torch import Tensor


def slope(hf: Any, inputs: dict[str, Any]) -> Tensor:
    """Length over channels of the gradient of the best token's log-probability, `[height, width]`."""
    pixels = inputs["pixel_values"].clone().requires_grad_(True)
    with torch.enable_grad():
        logits = hf(**{**inputs, "pixel_values": pixels}, use_cache=False).logits[0, -1]
        (-torch.nn.functional.cross_entropy(logits[None], logits.argmax()[None])).backward()
    assert pixels.grad is not None
    return pixels.grad[0].square().sum(dim=0).sqrt()


def detail(picture: list[list[list[float]]]) -> list[list[bool]]:
    """Of a picture `[channel][y][x]`; mirrored at its edges, for the blur without, for the median with the edge."""
    height, width = len(picture[0]), len(picture[0][0])
    weight = [math.exp(-(d * d) / (2 * 0.8**2)) for d in (-1, 0, 1)]
    weight = [w / sum(weight) for w in weight]

    def mirrored(i: int, n: int) -> int:
        return -i if i < 0 else 2 * (n - 1) - i if i >= n else i

    def with_edge(i: int, n: int) -> int:
        return -i - 1 if i < 0 else 2 * n - 1 - i if i >= n else i

    strength = [[0.0] * width for _ in range(height)]
    for y in range(height):
        for x in range(width):
            total = 0.0
            for channel in picture:
                blurred = sum(
                    weight[a + 1] * weight[b + 1] * channel[mirrored(y + a, height)][mirrored(x + b, width)]
                    for a in (-1, 0, 1)
                    for b in (-1, 0, 1)
                )
                total += (channel[y][x] - blurred) ** 2
            strength[y][x] = math.sqrt(total)
    smooth = [
        [
            statistics.median(
                strength[with_edge(y + a, height)][with_edge(x + b, width)] for a in range(-3, 4) for b in range(-3, 4)
            )
            for x in range(width)
        ]
        for y in range(height)
    ]
    middle = statistics.median(value for row in smooth for value in row)
    return [[value > middle for value in row] for row in smooth]


def pure_gradient(question: Tensor, general: Tensor, wanted: list[list[bool]], cells: int) -> Tensor:
    """`[cells, cells]` mean over each cell's pixels of the ratio where wanted, else 0."""
    side = question.shape[0] // cells
    out = torch.zeros(cells, cells)
    for y in range(question.shape[0]):
        for x in range(question.shape[1]):
            if wanted[y][x]:
                out[y // side, x // side] += float(question[y, x] / general[y, x]) / side**2
    return out


def crop(values: list[list[float]], size: tuple[int, int], base: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom in pixels; a map over the whole picture."""
    rows, columns = len(values), len(values[0])
    cell_x, cell_y = size[0] / columns, size[1] / rows
    best, box = None, (0.0, 0.0, float(size[0]), float(size[1]))
    for ratio in (1.0, 1.2, 1.4, 1.6, 1.8, 2.0):
        nx, ny = (max(1, min(int(base * ratio / c), n)) for c, n in ((cell_x, columns), (cell_y, rows)))
        if (nx, ny) == (columns, rows):
            continue
        sums = {
            (x, y): sum(values[j][i] for i in range(x, x + nx) for j in range(y, y + ny))
            for y in range(rows - ny + 1)
            for x in range(columns - nx + 1)
        }
        x, y = max(sums, key=lambda at: sums[at])
        beside = [sums[at] for at in ((x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)) if at in sums]
        sharp = (sums[x, y] - sum(beside) / len(beside)) / (nx * ny)
        if best is None or sharp > best:
            best = sharp
            width, height = min(base * ratio, size[0]), min(base * ratio, size[1])
            left = min(max((x + nx / 2) * cell_x - width / 2, 0), size[0] - width)
            top = min(max((y + ny / 2) * cell_y - height / 2, 0), size[1] - height)
            box = (left, top, left + width, top + height)
    return box
