"""The registered layers of a model, and what the model itself does with them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.extend.core

from dropbn.diagnose import tracing
from dropbn.diagnose.layer_marks import Marked
from dropbn.diagnose.noises import Noise
from dropbn.diagnose.norms import Norm
from dropbn.diagnose.tracing import Path, flat_stats
from dropbn.errors import DropbnError


class Use(NamedTuple):
    """What the model itself does with a layer.

    Attributes:
      train, test: whether, in this mode, a noise is on or a BN normalizes with the statistics of the batch,
        in at least one of its calls; None if the mode does not reach the layer.
      values: the smallest number of values per channel that a call of a BN gets.
      layer: what is known of it; None of a noise that is drawn by hand.
    """

    train: bool | None = None
    test: bool | None = None
    values: float = float("inf")
    layer: Norm | Noise | None = None

    @property
    def norm(self) -> Norm | None:
        """What is known of a BN."""
        return self.layer if isinstance(self.layer, Norm) else None


class Traced(NamedTuple):
    """A mode of a model, traced.

    Attributes:
      jaxpr: its inputs are the arrays of (variables, args, kwargs), then a key for each of `streams`. The
        outputs of layers are marked: those of noises and BNs with their input, see `tracing.mark_p`, and
        those of modules with other running state, see `dropbn.diagnose.layer_marks`.
      streams: the random streams, as their keys are ordered.
    """

    jaxpr: jax.extend.core.ClosedJaxpr
    streams: tuple[str, ...]


class Layers(NamedTuple):
    """The registered layers of a model, and what the model itself does with them.

    Attributes:
      noises, norms: by path, in the order of the trace in training, then in test mode.
      elsewhere: BNs whose statistics are in another collection than `batch_stats`, and that collection.
      moved: modules that keep something else than `batch_stats` and parameters that training moves and test
        mode reads, and the collection.
      streams: the random streams from which the model draws.
      draws, test_draws: the random draws of no registered noise in training and in test mode, and the batch
        normalizations that each reaches first; see `dropbn.diagnose.random_draws.reached`.
      by_hand: where draws stand -> the module around them that test mode makes an identity, or does not call.
        It is a noise without being registered: it is switched off by leaving it out.
      passes: those modules, and what each gives back then: its first argument if the number is 0, otherwise a
        tuple of so many.
      within: where draws stand -> the registered layer around them that does more than add noise.
      states: modules with running state that is not a batch normalization's, by name, and the batch
        normalizations that each reaches first.
      marked: what else the traces say of each layer, by name; see `dropbn.diagnose.layer_marks`.
      epsilon: the largest machine epsilon of the floats that the model computes.
      returned: the shapes of what the model returns, in training and in test mode.
      traced: the two modes.
    """

    noises: dict[Path, Use]
    norms: dict[Path, Use]
    elsewhere: dict[Path, str]
    moved: dict[Path, str]
    streams: tuple[str, ...]
    draws: dict[str, list[str]]
    test_draws: dict[str, list[str]]
    by_hand: dict[str, Path]
    passes: dict[Path, int]
    within: dict[str, Path]
    states: dict[str, list[str]]
    marked: dict[str, Marked]
    epsilon: float
    returned: tuple[Any, Any]
    traced: tuple[Traced, Traced]

    @property
    def always_on(self) -> frozenset[Path]:
        """Noises that are on, and BNs that use the batch, in both modes."""
        return frozenset(path for path, use in (self.noises | self.norms).items() if use.train and use.test)

    @property
    def frozen(self) -> frozenset[Path]:
        """BNs that use their running statistics in training too, where these never move."""
        return frozenset(path for path, use in self.norms.items() if use.train is False)

    @property
    def training_draws(self) -> list[str]:
        """The draws that training has and test mode has not."""
        return [where for where in self.draws if where not in self.test_draws]

    @property
    def draws_in_both(self) -> list[str]:
        """The draws that both modes have."""
        return [where for where in self.draws if where in self.test_draws and where not in self.within]

    @property
    def never_off(self) -> list[str]:
        """The noises that are on in both modes, and the draws that both have."""
        noises = [tracing.name_of(path) for path, use in self.noises.items() if use.train and use.test]
        return noises + self.draws_in_both

    @property
    def unswitched(self) -> list[str]:
        """Those that no switch reaches."""
        return [where for where in self.training_draws if where not in self.by_hand | self.within]

    def other_state(self, variables: Mapping) -> list[str]:
        """Modules whose running state is not measured, such as spectral norms and codebooks.

        They are no batch normalizations, or keep their statistics in another collection, which is named.
        """
        paths = dict.fromkeys(path[:-1] for path in flat_stats(variables))
        named = [tracing.name_of(path) for path in paths if path not in self.norms]
        return [*dict.fromkeys(named), *self._names_elsewhere.values()]

    @property
    def _names_elsewhere(self) -> dict[str, str]:
        """The modules with running state outside `batch_stats`, by name, with the collection."""
        paths = self.moved | self.elsewhere
        return {tracing.name_of(path): f"{tracing.name_of(path)} in '{paths[path]}'" for path in paths}

    @property
    def per_example(self) -> frozenset[str]:
        """The noises that draw at most one number for each example, by name, as drop path does."""
        return frozenset(name for name, marked in self.marked.items() if marked.per_example)

    @property
    def unseen_states(self) -> dict[str, list[str]]:
        """The modules whose running state may be that of a batch normalization, and what each reaches first.

        One that no noise can shift, and that can shift no batch normalization, is left out.
        """
        has_noise = self.switched_noises or self.unswitched
        norms, names = {*map(tracing.name_of, self.norms)}, self._names_elsewhere
        found = [name for name, mark in self.marked.items() if mark.may_be_norm and name not in norms]
        found = [*dict.fromkeys([*found, *map(tracing.name_of, self.elsewhere)])]
        reached = {name: self.states.get(name, []) for name in found}
        return {names.get(name, name): norms for name, norms in reached.items() if has_noise or norms}

    @property
    def known(self) -> dict[Path, Norm]:
        """What is known of each BN."""
        return {path: use.norm for path, use in self.norms.items() if use.norm}

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
