"""Train adapters on a base that two processes shard by FSDP2, on the CPU, and compare with one process.

    python benchmarks/sharded_base.py [--out benchmarks/results/sharded-base.json]

A small Llama in float32 with random weights. The frozen weights of each layer are sharded and gathered for each pass;
the adapters are whole on each rank, and their gradients are summed, as with `gpus`. Three rows in a step, so one rank
has an empty pass. `docs/decisions/several-cards-one-stage.md` says what follows from it.
"""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from report import circumstances, report
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing import get_context
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

RANKS, STEPS, ROWS = 2, 6, 3
SHAPE = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
EMPTY = torch.tensor([3, 4])


def model_with_adapters() -> Any:
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SHAPE))
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def sharded(model: Any) -> Any:
    """Shard everything but the adapters: each layer by itself, and the rest together."""
    mesh = init_device_mesh("cpu", (RANKS,))
    whole = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for layer in model.base_model.model.model.layers:
        fully_shard(layer, mesh=mesh, ignored_params=whole & {*layer.parameters()})
    fully_shard(model, mesh=mesh, ignored_params=whole)
    return model


def train(rank: int, ranks: int) -> dict[str, Any]:
    """Return the loss and the norm of the gradient in each step, and the size of the base on this rank."""
    model = model_with_adapters()
    if ranks > 1:
        model = sharded(model)
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    base = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    held = sum(getattr(parameter, "to_local", lambda p=parameter: p)().numel() for parameter in base)
    random = torch.Generator().manual_seed(1)
    optimizer, history = torch.optim.AdamW(adapters, lr=1e-3), []
    for _ in range(STEPS):
        lengths = torch.randint(8, 40, (ROWS,), generator=random).tolist()
        rows = [torch.randint(3, 500, (length,), generator=random) for length in lengths]
        mine = rows[rank::ranks]
        mine += [EMPTY] * (-(-ROWS // ranks) - len(mine))  # all ranks gather each layer equally often
        loss = torch.zeros(())
        optimizer.zero_grad()
        for row in mine:
            part = loss_of(model, row) / (sum(lengths) - ROWS)
            part.backward()
            loss += part.detach()
        if ranks > 1:
            for number in (loss, *(parameter.grad for parameter in adapters)):
                dist.all_reduce(number)
        norm = torch.stack([parameter.grad.square().sum() for parameter in adapters]).sum().sqrt()
        optimizer.step()
        history.append((float(loss), float(norm)))
    return {"history": history, "base_numbers": held}


def loss_of(model: Any, row: Tensor) -> Tensor:
    logits = model(input_ids=row[None]).logits[0]
    return cross_entropy(logits[:-1], row[1:], reduction="sum") * (row is not EMPTY)


def as_rank(rank: int, port: int, pipe: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    pipe.send(train(rank, RANKS))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    alone = train(0, 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(RANKS)]
    ranks = [context.Process(target=as_rank, args=(rank, port, pipe)) for rank, (_, pipe) in enumerate(pipes)]
    for process in ranks:
        process.start()
    found = [receiving.recv() for receiving, _ in pipes]
    for process in ranks:
        process.join()
    apart = max(
        abs(one / other - 1)
        for rank in found
        for ours, theirs in zip(rank["history"], alone["history"], strict=True)
        for one, other in zip(ours, theirs, strict=True)
    )
    result = {
        "what": f"adapters trained on a base that {RANKS} processes shard by FSDP2 (gloo, float32), and by one process",
        **circumstances("torch", "transformers", "peft"),
        "steps": STEPS,
        "largest relative difference of loss and norm of the gradient": apart,
        "numbers of the base": alone["base_numbers"],
        "numbers of the base on each rank": [rank["base_numbers"] for rank in found],
    }
    report(result, out)


if __name__ == "__main__":
    main()
