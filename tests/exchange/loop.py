"""An asyncio event loop in a thread of its own, driven from other threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

CALL_TIMEOUT_S = 30.0

T = TypeVar("T")


class LoopThread:
    """Runs `up`, then tasks and calls, and at last `down`, all in the loop of one thread.

    `spawn` is for the loop's own thread, all other methods for any thread but that one.
    What takes longer than 30 s raises TimeoutError.
    """

    def __init__(
        self,
        name: str,
        up: Callable[[], Coroutine[Any, Any, None]],
        down: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._name = name
        self._up = up
        self._down = down
        self._errors: list[BaseException] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread

    def start(self) -> None:
        """Start the thread and wait until `up` is done. Where that raises, `down` is run and the error raised."""
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._callback_failed)
        self._thread = threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True)
        self._thread.start()
        try:
            self.run(self._up())
        except BaseException:
            self._end(self._loop)
            raise

    def stop(self) -> None:
        """Run `down`, cancel all tasks and join the thread. Raises the first error of any task or callback."""
        if self._loop is not None:
            self._end(self._loop)
        if self._errors:
            raise self._errors[0]

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine as a task that ends with the loop at the latest; its error is raised by `stop`."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in the loop, or here where the loop does not run, and return its result."""

        async def call() -> T:
            return function()

        return function() if self._loop is None else self.run(call())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop, which has to be started, and return its result."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(CALL_TIMEOUT_S)

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self.run(self._wind_up())
        finally:
            self._loop = None
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join(CALL_TIMEOUT_S)
        if self._thread.is_alive():
            raise TimeoutError(f"the thread {self._name} did not stop")
        loop.close()

    async def _wind_up(self) -> None:
        await self._down()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.append(error)

    def _callback_failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._errors.append(context.get("exception") or RuntimeError(context["message"]))
