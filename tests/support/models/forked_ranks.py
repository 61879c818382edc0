"""Ranks of a stage as processes forked from the test, which meet by gloo as those of a stage do."""

from __future__ import annotations

import os
import socket
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from alignment_core.ranks.group import Group

SECONDS = 240


def in_ranks(size: int, work: Callable[[Group], Any]) -> list[Any]:
    """Run `work` on each of so many ranks, and return what it returned or raised, in the order of the ranks."""
    context = get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    ranks = [
        context.Process(target=_rank, args=(index, size, port, pipe, work)) for index, (_, pipe) in enumerate(pipes)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests in this process may have left threads
        for rank in ranks:
            rank.start()
    try:
        found = []
        for receiving, _ in pipes:
            assert receiving.poll(SECONDS), "the ranks wait for each other"
            found.append(receiving.recv())
        return found
    finally:
        for rank in ranks:
            rank.join(5)
            rank.kill()


def _rank(index: int, size: int, port: int, pipe: Connection, work: Callable[[Group], Any]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    group = Group.join(index, size, on_cards=False)
    try:
        found: Any = work(group)
    except BaseException as error:
        traceback.print_exc()
        found = error
    pipe.send(found)
    os._exit(0)  # whatever the test's process would do at its end
