"""In processes that ipyparallel's tests start: the launchers' commands are ours, as in the tests' own process."""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

NAME = "ipyparallel.cluster.launcher"


class Replace(MetaPathFinder):
    """Patches the launcher module as soon as it has been imported."""

    busy = False

    def find_spec(self, name, path=None, target=None):
        if name != NAME or self.busy:
            return None
        self.busy = True
        try:
            spec = find_spec(name)
        finally:
            self.busy = False
        run = spec.loader.exec_module

        def exec_module(module):
            import launchers

            run(module)
            launchers.replace(module)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("IPCTL") or os.environ.get("IPENGINE"):
    sys.meta_path.insert(0, Replace())
