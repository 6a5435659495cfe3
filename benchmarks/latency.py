"""Latency of width and of depth for one board, as ratios in one run.

python -m benchmarks.latency
"""

from functools import partial

import torch

from probgram import tasks
from probgram.inference import sample
from probgram.inference.timing import interleaved, ratio
from probgram.models import GRAM

WIDTHS, DEPTHS = (1, 4, 16, 64), (4, 16, 64)


def main(rounds: int = 9) -> None:
    torch.set_num_threads(1)
    chain = GRAM.for_task(tasks.Queens(8)).eval()
    x = tasks.Queens(8).examples("test")[0][0]
    candidates = {f"width {n}, depth 4": partial(sample, chain, x, n, 4) for n in WIDTHS}
    candidates |= {f"width 1, depth {d}": partial(sample, chain, x, 1, d) for d in DEPTHS}
    seconds = interleaved(candidates, rounds)
    print(f"median of {rounds} rounds, one thread; ratio to width 1, depth 4 [quartiles]")
    print("| run | seconds | ratio |")
    print("|---|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {sorted(values)[rounds // 2]:.4f} | {ratio(seconds, name, 'width 1, depth 4')} |")


if __name__ == "__main__":
    main()
