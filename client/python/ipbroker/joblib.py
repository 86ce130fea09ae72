"""joblib on a cluster: ``ipbroker.joblib.register()``, then ``joblib.parallel_config("ipbroker")``."""

from __future__ import annotations

from typing import Any, Callable, Optional

from . import _nested
from .client import Client

_NAME = "ipbroker"


def register(client: Optional[Client] = None, **options: Any) -> None:
    """Makes ``"ipbroker"`` a backend of joblib. ``client``: the cluster, else the default profile's; options are a view's."""
    from joblib.parallel import AutoBatchingMixin, ParallelBackendBase, register_parallel_backend

    class IpbrokerBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
        supports_inner_max_num_threads = False
        supports_timeout = True
        default_n_jobs = -1
        uses_threads = False
        supports_sharedmem = False

        def __init__(self, **given: Any) -> None:
            own = dict(options)
            self._client = given.pop("client", None) or client
            view_options = {key: given.pop(key) for key in list(given) if key in _OPTIONS}
            unknown = sorted(given.keys() - {"nesting_level", "inner_max_num_threads"})
            if unknown:
                raise TypeError(f"unknown option {unknown[0]!r} of the backend {_NAME!r}: there are client, {', '.join(sorted(_OPTIONS))}")
            own.update(view_options)
            super().__init__(**given)
            # In a call that waits, its engine works on others, which joblib's own way to wait does not know.
            self.supports_retrieve_callback = not _nested.in_call()
            self._own = self._client is None
            self._options = own
            self._view: Any = None

        def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
            if self._client is None:
                self._client = Client()
            self._view = self._client.view(**self._options)
            self._futures: "set[Any]" = set()
            self.parallel = parallel
            return self.effective_n_jobs(n_jobs)

        def effective_n_jobs(self, n_jobs: Optional[int]) -> int:
            if n_jobs == 0:
                raise ValueError("n_jobs == 0 in Parallel has no meaning")
            engines = 1 if self._client is None else max(1, int(self._client._link.native.engine_count()))
            if n_jobs is None or n_jobs < 0:
                return max(1, engines + 1 + (n_jobs if n_jobs is not None else -1))
            return n_jobs

        def submit(self, func: Callable[[], Any], callback: Optional[Callable[[Any], Any]] = None) -> Any:
            future = self._view.submit(func)
            self._futures.add(future)
            future.add_done_callback(self._futures.discard)
            if callback is not None:
                future.add_done_callback(callback)
            return future

        apply_async = submit

        def retrieve_result(self, out: Any, timeout: Optional[float] = None) -> Any:
            return out.result(timeout)

        retrieve_result_callback = retrieve_result

        def abort_everything(self, ensure_ready: bool = True) -> None:
            for future in list(self._futures):
                future.cancel()

        def terminate(self) -> None:
            if self._own and self._client is not None:
                self._client.close()
                self._client = None

        def get_nested_backend(self) -> Any:
            from joblib.parallel import SequentialBackend

            return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None

    register_parallel_backend(_NAME, IpbrokerBackend)


_OPTIONS = {"after", "follow", "any", "on", "timeout", "retries", "retry_delay", "max_crashes", "host", "prefer", "prefer_wait", "tags", "priority", "require", "cpus", "gpus", "memory", "resources", "nodes", "limit", "targets"}
