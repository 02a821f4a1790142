"""A thread for what can be done meanwhile."""

import collections
import threading
from collections.abc import Callable
from concurrent.futures import Future


class Background:
  """Does jobs in turn in a thread of its own, which ends when there are none.

  When the program ends, the job that is being done is waited for and no other is begun. (A
  `ThreadPoolExecutor` would do all that are queued before the main thread counts as ended.)
  """

  def __init__(self, name: str) -> None:
    """Begin with no job; `name` is the thread's."""
    self._name = name
    self._jobs: collections.deque[tuple[Callable[[], None], Future[None]]] = collections.deque()
    self._lock = threading.Lock()
    self._works = False

  def submit(self, job: Callable[[], None]) -> Future[None]:
    """Queue a job; return what tells when it is done, and is cancelled if it is not to be done."""
    done: Future[None] = Future()
    with self._lock:
      self._jobs.append((job, done))
      if not self._works:
        self._works = True
        threading.Thread(target=self._work, name=self._name).start()
    return done

  def _next(self) -> tuple[Callable[[], None], Future[None]] | None:
    with self._lock:
      self._works = bool(self._jobs)
      return self._jobs.popleft() if self._jobs else None

  def _work(self) -> None:
    while (taken := self._next()) is not None:
      job, done = taken
      if not threading.main_thread().is_alive():
        done.cancel()
        continue
      try:
        job()
      except BaseException as error:
        done.set_exception(error)
      else:
        done.set_result(None)
