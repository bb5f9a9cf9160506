"""Agents as processes over gloo: python decentralised_ranks.py PROBLEM.npz ANSWER.npz

The problem holds each agent's Gram matrix, Phi'y and rows, the weights P, the step and their number. One
process imports, the agents are forked from it, before anything of torch.distributed has begun.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from datetime import timedelta
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from bochner.gram import GramStatistics, Precision
from bochner.gram.gossip import gossip_rank


def statistics(gram: np.ndarray, cross: np.ndarray, rows: int) -> GramStatistics:
    """What descent reads of them."""
    nothing = GramStatistics.zeros(len(gram), cross.shape[1])
    return GramStatistics(
        gram,
        cross,
        nothing.feature_sum,
        nothing.target_sum,
        nothing.target_products,
        float(rows),
        rows,
        Precision.DOUBLE,
    )


def agent(rank: int, problem: dict[str, np.ndarray], store: str, pipe: Connection) -> None:
    """One agent: descend, and say where it ended and how long a step took."""
    torch.set_num_threads(1)
    size = len(problem["gram"])
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=120),
    )
    own = statistics(problem["gram"][rank], problem["cross"][rank], int(problem["rows"][rank]))
    steps = gossip_rank(own, problem["weights"], step_size=float(problem["step_size"]))
    next(steps)
    dist.barrier()
    began = time.perf_counter()
    last = next(islice(steps, int(problem["steps"]) - 1, None))
    pipe.send((last, time.perf_counter() - began))
    dist.barrier()
    dist.destroy_process_group()


def main(problem_file: Path, answer_file: Path) -> None:
    """Run all agents."""
    with np.load(problem_file) as stored:
        problem = {name: stored[name] for name in stored.files}
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    with tempfile.TemporaryDirectory() as folder:
        pairs = [context.Pipe(duplex=False) for _ in problem["gram"]]
        processes = [
            context.Process(target=agent, args=(rank, problem, f"{folder}/store", theirs))
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in processes:
            process.start()
        for _, theirs in pairs:
            theirs.close()  # so that an agent that died is an error here, not a wait
        answers = [ours.recv() for ours, _ in pairs]
        for process in processes:
            process.join()
    seconds = max(seconds for _, seconds in answers)
    np.savez(answer_file, coefficients=np.stack([last for last, _ in answers]), seconds=seconds)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
