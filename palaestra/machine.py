"""What a run computes on: its device, its threads, and whether one run of it is like the next."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
HELD, LARGEST_BLOCK = 1 << 30, 32 << 20  # bytes; glibc allows no larger block


def resolved(device: str) -> str:
    """The device, after a number was put there and read back; "auto" is "cuda" where that works, else "cpu".

    ValueError where it cannot be used.
    """
    if device == "auto":
        return "cpu" if _problem("cuda") else "cuda"
    if problem := _problem(device):
        raise ValueError(f"device={device!r} cannot be used here ({problem}); use cpu")
    return device


def _problem(device: str) -> str | None:
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, TypeError) as wrong:  # PyTorch asserts that it was compiled for the device
        return str(wrong).partition("\n")[0].rstrip(".")
    return None


def hold_memory() -> None:
    """Let the C library keep what is freed, for the next tensors, where it is glibc; elsewhere nothing happens.

    It gives blocks of megabytes back to the system and asks for them again at each update, page by page: a tenth of the
    time of stacked seeds on a processor. What is held stays with the process, up to a gigabyte.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        libc.mallopt(M_TRIM_THRESHOLD, HELD)


@contextmanager
def computing(threads: int | None = None, deterministic: bool = False) -> Iterator[None]:
    """Compute with so many threads (as many as before when None), and in a fixed order; afterwards as before.

    The number of threads decides in which order sums are taken, and so their last bits. `deterministic` makes
    operations on a GPU that have no fixed order raise a RuntimeError or take one: it costs speed.
    """
    number, cudnn = torch.get_num_threads(), torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags, workspace = (cudnn.deterministic, cudnn.benchmark), os.environ.get(WORKSPACE)
    if threads is not None:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault(WORKSPACE, ":4096:8")  # cuBLAS reads it when it is first used
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(number)
        if deterministic:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            cudnn.deterministic, cudnn.benchmark = flags
            if workspace is None:
                os.environ.pop(WORKSPACE, None)
