"""Compiled programs of a model, found again for an equal one."""

import functools
from collections.abc import Callable

from dropbn.diagnose import registry


def cached(build: Callable) -> Callable:
    """`build(model, *others)`, remembered: equal arguments get the program that was compiled before.

    A model that is measured again, for example after an epoch, is not compiled again. If an argument has no
    hash, nothing is remembered. An interceptor that is active at the first call stays part of the program.
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
