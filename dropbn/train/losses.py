"""Tasks: the loss and the score of every image."""

import jax
import jax.numpy as jnp
import optax

from dropbn.errors import DropbnError


def classify(outputs: jax.Array, batch: dict) -> dict[str, jax.Array]:
    """Cross-entropy of logits, and whether the largest logit is the label's.

    Args:
      outputs: logits (images, classes).
      batch: {"image", "label"}.

    Returns:
      {"loss", "correct"}, each (images,).
    """
    logits = outputs.astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return {"loss": losses, "correct": jnp.argmax(logits, -1) == batch["label"]}


def reconstruct(outputs: jax.Array, batch: dict) -> dict[str, jax.Array]:
    """Mean squared error over an image's pixels, and the share of the variance that is explained, 1 - error.

    The share is meant for normalized images, whose channels have mean 0 and variance 1. Its average over a
    dataset is R^2, which takes the place of a classifier's accuracy.

    Args:
      outputs: (images, pixels x channels).
      batch: {"image", "label"}.

    Returns:
      {"loss", "correct"}, each (images,).

    Raises:
      DropbnError: the outputs do not have the size of an image.
    """
    images = batch["image"].reshape(len(outputs), -1)
    if outputs.shape != images.shape:
        raise DropbnError(
            f"task='reconstruct': the network has {outputs.shape[-1]} outputs, an image {images.shape[-1]} "
            "values; model.num_classes is the number of outputs."
        )
    errors = jnp.square(outputs.astype(jnp.float32) - images).mean(-1)
    return {"loss": errors, "correct": 1 - errors}


TASKS = {"classify": classify, "reconstruct": reconstruct}
