"""Outputs of a model for batches."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dropbn.diagnose.batches import Batches
from dropbn.diagnose.cache import cached
from dropbn.diagnose.call import fold_in, num_examples
from dropbn.diagnose.interception import Mode
from dropbn.diagnose.model import Model


class Predictor:
    """Outputs of a model for batches, in one mode, by one compiled program.

    Attributes:
      model: the model and how it is called.
    """

    def __init__(self, model: Model, mode: Mode) -> None:
        """Statistics are frozen in any mode."""
        self.model, self._mode, self._outputs = model, mode.frozen, program(model, mode.frozen)

    def __call__(self, variables: dict, batches: Batches, rngs: dict | None = None) -> Iterator[tuple]:
        """(batch, float32 outputs) of every batch.

        If BN uses running statistics, a batch that is shorter than the first is padded to its length, which
        saves a compilation.

        Args:
          variables: the model's.
          batches: the batches that hold its inputs.
          rngs: random keys by stream, by default the model's; the batch's index is folded in.

        Raises:
          DropbnError: the first batch gives a BN one value per channel, and BN uses the batch.
        """
        first = batches.inputs(batches.first)
        layers = self.model.layers(variables, first)
        by_batch = self._mode.batch_norm == "batch"
        if by_batch:
            layers.refuse_one_value()
        # What is padded is part of the batch for a BN that uses the batch in test mode too.
        may_pad = not by_batch and not any(use.test for use in layers.norms.values())
        rngs = self.model.rngs(layers) if rngs is None else rngs
        for index, batch in enumerate(batches):
            x = batches.inputs(batch)
            padded, length = x, num_examples(x)
            if hasattr(x, "shape") and may_pad and length < len(first):
                padded = jnp.concatenate([x, jnp.repeat(x[-1:], len(first) - length, axis=0)])
            outputs = np.asarray(self._outputs(variables, padded, fold_in(rngs, index)))
            yield batch, outputs[:length] if padded is not x else outputs


@cached
def program(model: Model, mode: Mode) -> Callable:
    """The compiled function from (variables, inputs of a batch, rngs) to float32 outputs."""

    @jax.jit
    def outputs(variables, x, rngs):
        returned, _ = model.apply(variables, x, mode, rngs)
        return model.call.output(returned).astype(jnp.float32)

    return outputs
