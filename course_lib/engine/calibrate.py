"""How many threads decode fastest on this machine, as busy as it is now."""

import statistics
import time
from collections.abc import Callable

import torch

STEPS = 3
GAIN = 0.95  # more threads must save at least a twentieth of the time to be worth having


@torch.inference_mode()
def fastest_threads(step: Callable[[], object], cores: int) -> tuple[int, str]:
    """Time `step`, one token's work, with 1, 2, 4, ... threads while they pay: (threads, why).

    A token costs the time to read the weights, and a few cores read as fast as the memory can give. Where
    another program holds a core, every parallel loop waits for it, and one thread alone is fastest.
    Leaves torch set to the number it returns.
    """

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        step()  # starts the threads
        times = []
        for _ in range(STEPS):
            started = time.perf_counter()
            step()
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    best, tried = 1, {1: seconds(1)}
    while best < cores and best == max(tried):
        more = min(2 * best, cores)
        tried[more] = seconds(more)
        if tried[more] < GAIN * tried[best]:
            best = more
    torch.set_num_threads(best)
    times = ", ".join(f"{time * 1e3:.0f} ms with {threads}" for threads, time in tried.items())
    return best, f"one token takes {times}, measured now"
