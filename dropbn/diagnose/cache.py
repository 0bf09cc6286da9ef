"""Compiled programs of a model, found again for an equal one."""

import functools
from collections.abc import Callable

from dropbn.diagnose import registry


def cached(build: Callable) -> Callable:
    """`build(model, *others)`, which compiles; for an equal call what it made before is returned.

    A model that is measured again, after an epoch say, is then not compiled again. If an argument has no
    hash, nothing is kept. An interceptor of the caller's own is traced into what is kept.
    """

    @functools.lru_cache(maxsize=16)
    def remembered(registered, *arguments):
        return build(*arguments)

    def call(*arguments):
        # A type of layer that is registered in between changes what is traced.
        registered = (*registry.NOISES.items(), *registry.NORMS.items())
        try:
            hash(arguments)
        except TypeError:
            return build(*arguments)
        return remembered(registered, *arguments)

    return call
