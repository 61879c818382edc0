"""Call what uses Prefect from a notebook, whose thread runs an event loop."""

import asyncio
import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import wraps
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def outside_event_loop(run: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Run in a thread if this one runs an event loop, as a notebook does: Prefect would return coroutines there."""

    @wraps(run)
    def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return run(*args, **kwargs)
        done: Future[Result] = Future()

        def work() -> None:
            try:
                done.set_result(run(*args, **kwargs))
            except BaseException as error:
                done.set_exception(error)

        thread = threading.Thread(target=copy_context().run, args=(work,))
        thread.start()
        try:
            return done.result()
        except KeyboardInterrupt:
            # The stage stops as it does on Ctrl-C, and keeps its checkpoint.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(KeyboardInterrupt)
            )
            thread.join()
            raise

    return wrapper
