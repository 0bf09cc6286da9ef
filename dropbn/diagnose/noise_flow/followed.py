"""Where the noises of a model lead."""

import dataclasses
import itertools

from dropbn.diagnose.noise_flow.values import Path
from dropbn.diagnose.noises import Noise


@dataclasses.dataclass
class Followed:
    """Where the noises of a model lead.

    Attributes:
      noises: those of the trace, and those that are drawn by hand, by where their draws stand.
      unknown: where draws stand that do something else than scale and shift data.
      reached: (noise, norm) -> `Path`, in the order of the trace.
      origins: what computed the input of each noise last; see `Value.origin`.
      on_trunk: noises on which both operands of an addition depend, one operand being the noisy array itself.
      after_last_weight: noises that stand between a weight layer and the addition of a skip.
      together: groups of noises that stand in one branch.
      max_pooled: noises whose array goes straight into max pooling.
      biased: BN -> the bias that was added right before it.
      behind: noise -> every BN that depends on it, in the order of the trace.
    """

    noises: dict[str, Noise]
    unknown: set[str] = dataclasses.field(default_factory=set)
    reached: dict[tuple[str, str], Path] = dataclasses.field(default_factory=dict)
    origins: dict[str, str] = dataclasses.field(default_factory=dict)
    on_trunk: set[str] = dataclasses.field(default_factory=set)
    after_last_weight: set[str] = dataclasses.field(default_factory=set)
    together: set[frozenset[str]] = dataclasses.field(default_factory=set)
    max_pooled: set[str] = dataclasses.field(default_factory=set)
    biased: dict[str, str] = dataclasses.field(default_factory=dict)
    behind: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    @property
    def understood(self) -> set[str]:
        """Where the draws stand of which every use is a noise."""
        drawn = (name.split("; ") for name, noise in self.noises.items() if noise.is_drawn)
        return set(itertools.chain.from_iterable(drawn)) - self.unknown
