"""A thread for what can be done meanwhile."""

import collections
import threading
from collections.abc import Callable
from concurrent.futures import Future

from absl import logging


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
      if not self._works:
        try:  # it waits for the lock
          threading.Thread(target=self._work, name=self._name).start()
        except RuntimeError as error:  # there are too many, or the program is ending
          logging.warning("nothing is done meanwhile: %s", error)
          done.cancel()
          return done
        self._works = True
      self._jobs.append((job, done))
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
      if not done.set_running_or_notify_cancel():
        continue
      try:
        job()
      except BaseException as error:
        done.set_exception(error)
      else:
        done.set_result(None)
