"""The registered layers of a model, and what the model itself does with them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from dropbn.diagnose import interception, random_draws, registry, tracing
from dropbn.diagnose.cache import cached
from dropbn.diagnose.interception import TEST, TRAIN
from dropbn.diagnose.tracing import Path, flat_stats, split
from dropbn.errors import DropbnError


class Use(NamedTuple):
    """What the model itself does with a layer.

    Attributes:
      train, test: whether, in this mode, a noise is on or a BN normalizes with the statistics of the batch,
        in at least one of its calls; None if the mode does not reach the layer.
      values: the smallest number of values per channel that a call of a BN gets.
    """

    train: bool | None = None
    test: bool | None = None
    values: float = float("inf")


class Layers(NamedTuple):
    """The registered layers of a model, and what the model itself does with them.

    Attributes:
      noises, norms: by path, in the order of the trace in training, then in test mode.
      streams: the random streams from which the model draws.
      draws, test_draws: the random draws of no registered noise in training and in test mode, and the batch
        normalizations that each reaches first; see `dropbn.diagnose.random_draws.reached`.
    """

    noises: dict[Path, Use]
    norms: dict[Path, Use]
    streams: tuple[str, ...]
    draws: dict[str, list[str]]
    test_draws: dict[str, list[str]]

    @property
    def always_on(self) -> frozenset[Path]:
        """Noises that are on, and BNs that use the batch, in both modes."""
        return frozenset(path for path, use in (self.noises | self.norms).items() if use.train and use.test)

    @property
    def frozen(self) -> frozenset[Path]:
        """BNs that use their running statistics in training too, where these never move."""
        return frozenset(path for path, use in self.norms.items() if use.train is False)

    @property
    def unswitched(self) -> list[str]:
        """The draws that training has and test mode has not."""
        return [where for where in self.draws if where not in self.test_draws]

    def other_state(self, variables: Mapping) -> list[str]:
        """Modules with running state that is not a batch normalization's, such as spectral norms, by path."""
        paths = dict.fromkeys(path[:-1] for path in flat_stats(variables))
        return [tracing.name_of(path) for path in paths if path not in self.norms]

    def takes_batch(self, path: Path) -> bool:
        """Whether a BN at this path uses the batch in training."""
        return path in self.norms and bool(self.norms[path].train)

    def refuse_unregistered_norms(self, variables: Mapping) -> None:
        """Raises if the variables hold running statistics, but no BN of the model is registered."""
        stats = flat_stats(variables)
        unknown = [path[:-1] for path in stats if path[-1] == "mean" and (*path[:-1], "var") in stats]
        if unknown and not self.norms:
            raise DropbnError(
                f"The variables hold statistics of '{tracing.name_of(unknown[0])}', but the model has no "
                "batch normalization that dropbn.diagnose.registry knows: register its type."
            )

    def refuse_one_value(self) -> None:
        """Raises if a BN takes its statistics from one value per channel, whose variance is 0."""
        for path, use in self.norms.items():
            if use.train and use.values <= 1:
                raise DropbnError(
                    f"A batch of one image has no batch statistics: '{tracing.name_of(path)}' gets one value "
                    "per channel. Give batches as large as those of training."
                )

    @property
    def has_norm(self) -> bool:
        """Whether a BN takes statistics in training."""
        return any(use.train for use in self.norms.values())

    @property
    def switched_noises(self) -> list[Path]:
        """The noises that are on in training and off in test mode."""
        return [path for path, use in self.noises.items() if use.train and not use.test]


@cached
def find(model: Any, treedef: Any, leaves: tuple) -> Layers:
    """The layers of a `linen.Model` for (variables, args, kwargs) as `tracing.abstract` gives them."""
    arrays, rebuild = split(jax.tree.unflatten(treedef, leaves))
    streams, by_mode = list(dict.fromkeys(["dropout", *(model.call.rngs or ())])), []
    for testing in (False, True):
        noises: dict[Path, tuple[bool, float]] = {}
        norms: dict[Path, tuple[bool, float]] = {}

        def note(module, is_on, values, noises=noises, norms=norms):
            found = noises if registry.of(module, registry.NOISES) else norms
            on, fewest = found.get(module.path, (False, values))
            found[module.path] = on or is_on, min(fewest, values)

        def run(arrays, rngs, testing=testing, note=note):
            interceptor = interception.interceptor(TEST if testing else TRAIN, note=note)
            variables, args, kwargs = rebuild(arrays)
            given = variables, args, kwargs, testing, rngs, interceptor, True, True
            with nn.intercept_methods(_mark):
                try:
                    return model.run_under(*given, keeps_stats=testing)[0]
                except tracing.MissingKey:
                    raise
                except Exception:  # A BN uses the batch in test mode too, or nn.scan carries statistics.
                    return model.run_under(*given)[0]

        def trace(run, *given):
            return jax.make_jaxpr(run)(*given)

        jaxpr = tracing.shapes(model.name, run, arrays, streams, trace)
        num_keys = len(streams)
        is_key = [False] * (len(jaxpr.jaxpr.invars) - num_keys) + [True] * num_keys
        by_mode.append((noises, norms, random_draws.reached(jaxpr, is_key)))
    (noises, norms, drawn), (test_noises, test_norms, test_drawn) = by_mode
    uses = _uses(noises, test_noises), _uses(norms, test_norms)
    return Layers(*uses, tuple(streams), drawn, test_drawn)


def _mark(run, args, kwargs, context):
    """For `flax.linen.intercept_methods`: marks the outputs of noises and batch normalizations."""
    y, x = run(*args, **kwargs), next(iter((*args, *kwargs.values())), None)
    norm, noise = registry.norm_of(context.module), registry.of(context.module, registry.NOISES)
    if context.method_name != "__call__" or not (norm or noise) or y is x or not isinstance(y, jax.Array):
        return y
    kind = "norm" if norm else "noise"
    return tracing.mark_p.bind(y, x, kind=kind, name=registry.name_of(context.module), times=1)


def _uses(train, test):
    unreached, uses = (None, float("inf")), {}
    for path in train | test:
        (in_train, values), (in_test, others) = (found.get(path, unreached) for found in (train, test))
        uses[path] = Use(in_train, in_test, min(values, others))
    return uses
