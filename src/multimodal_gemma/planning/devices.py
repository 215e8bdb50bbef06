"""The GPUs that a cluster is likely to offer, by their makers' data sheets."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Device:
    """One kind of GPU.

    Attributes:
        name: short name.
        marks: words that the driver's name for it holds, all of them.
        tflops: dense bf16 peak with fp32 accumulation, 10^12 operations a second (data sheet, without sparsity).
        memory_gb: 10^9 bytes.
        bandwidth: of its memory, 10^9 bytes a second.
        dollars: what an hour of one costs on demand; an order of magnitude to compare by, not an offer.
    """

    name: str
    marks: tuple[str, ...]
    tflops: float
    memory_gb: float
    bandwidth: float
    dollars: float


PRICES = "2026-11"  # when the dollars were written down

DEVICES = (
    Device("L4", ("L4",), 121, 24, 300, 0.8),
    Device("A10", ("A10",), 125, 24, 600, 1.2),
    Device("A100-40", ("A100", "40GB"), 312, 40, 1555, 3.0),
    Device("A100-80", ("A100", "80GB"), 312, 80, 2039, 4.0),
    Device("A10G", ("A10G",), 70, 24, 600, 1.2),
    Device("L40S", ("L40S",), 362, 48, 864, 1.9),
    Device("H100", ("H100", "HBM3"), 989, 80, 3350, 7.0),
    Device("H100 PCIe", ("H100", "PCIe"), 756, 80, 2000, 5.0),
    Device("H100 NVL", ("H100", "NVL"), 835, 94, 3900, 6.0),
    Device("GH200", ("GH200",), 989, 96, 4000, 6.0),
    Device("H200", ("H200",), 989, 141, 4800, 8.0),
    Device("B200", ("B200",), 2250, 180, 8000, 10.0),
)


def find(driver_name: str) -> Device | None:
    """Return the device that a driver's name means, e.g. "NVIDIA A100-SXM4-80GB"; None where it is not listed."""
    words = driver_name.replace("-", " ").split()
    return next((device for device in DEVICES if all(mark in words for mark in device.marks)), None)
