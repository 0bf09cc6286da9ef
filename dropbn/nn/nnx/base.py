"""When noise is drawn, and from which key: the base classes of every NNX noise."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypedDict, Unpack

import jax
from flax import nnx

from dropbn.errors import DropbnError
from dropbn.nn import laws
from dropbn.nn.noise.base import shape_of_draw

Rngs = nnx.Rngs | nnx.RngStream


class Flags(TypedDict, total=False):
    """The keywords of every noise, as in `flax.nnx.Dropout`."""

    broadcast_dims: Sequence[int]
    deterministic: bool | None
    rng_collection: str
    rngs: Rngs | None


class Noise(nnx.Module):
    """When noise is drawn, and from which key. Use a subclass, which defines `apply_noise`.

    Attributes:
      broadcast_dims: dimensions that share one draw.
      deterministic: True switches the noise off; None leaves it to the call.
      rng_collection: name of the random stream.
      rngs: a fork of the stream that was given, or None, which leaves it to the call.

    Raises:
      DropbnError: `rngs` is neither `nnx.Rngs` nor a stream of one.
    """

    def __init__(
        self,
        *,
        broadcast_dims: Sequence[int] = (),
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: Rngs | None = None,
    ) -> None:
        self.broadcast_dims = tuple(broadcast_dims)
        self.deterministic = deterministic
        self.rng_collection = rng_collection
        self.rngs = nnx.data(None) if rngs is None else self._stream(rngs).fork()

    def __call__(
        self,
        inputs: jax.Array,
        *,
        deterministic: bool | None = None,
        rngs: Rngs | jax.Array | None = None,
    ) -> jax.Array:
        """`inputs` with noise in training, and as `at_test` gives them where `deterministic`.

        Args:
          inputs: array of any shape and floating dtype.
          deterministic: if given, it takes precedence over the attribute.
          rngs: `nnx.Rngs`, a stream or a key; if given, it takes precedence over the attribute.

        Returns:
          Array of the shape and dtype of `inputs`.

        Raises:
          DropbnError: neither the call nor the attribute says whether the noise is on, or it is on and has
            no random key.
        """
        if deterministic is None:
            deterministic = self.deterministic
        if deterministic is None:
            raise DropbnError(
                f"{type(self).__name__} does not know whether it is on: give deterministic= at construction "
                "or at the call, or call train() or eval() of the model."
            )
        if deterministic:
            return self.at_test(inputs)
        if self.is_identity:
            return inputs
        key = self._key(self.rngs if rngs is None else rngs)
        return self.apply_noise(inputs, key, shape_of_draw(inputs.shape, self.shared_dims(inputs.ndim)))

    def set_view(self, deterministic: bool | None = None) -> None:
        """For `nnx.view`.

        Args:
          deterministic: True switches the noise off.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def apply_noise(self, inputs: jax.Array, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """`inputs` with noise; a draw has the given shape, and is broadcast."""
        raise NotImplementedError(f"{type(self).__name__} defines no apply_noise.")

    def at_test(self, inputs: jax.Array) -> jax.Array:
        return inputs

    def shared_dims(self, ndim: int) -> Sequence[int]:
        """The dimensions of an input with `ndim` of them that share one draw."""
        return self.broadcast_dims

    @property
    def is_identity(self) -> bool:
        """Whether even training is known to change nothing."""
        return False

    @property
    def is_shared(self) -> bool:
        """Whether one draw may serve several positions."""
        return bool(self.broadcast_dims)

    def _stream(self, rngs):
        if isinstance(rngs, nnx.Rngs):
            return rngs[self.rng_collection]
        if isinstance(rngs, nnx.RngStream):
            return rngs
        raise DropbnError(
            f"{type(self).__name__} got {type(rngs).__name__} for rngs: give nnx.Rngs or a stream of one; "
            "a key only at the call."
        )

    def _key(self, rngs):
        if rngs is None:
            raise DropbnError(
                f"{type(self).__name__} is on but got no random key: give rngs=nnx.Rngs(...) at construction "
                "or at the call, or deterministic=True."
            )
        return rngs if isinstance(rngs, jax.Array) else self._stream(rngs)()


class OfLaw(Noise):
    """A noise of `dropbn.nn.laws`. A subclass has the amount as an attribute and defines `law`."""

    @property
    def law(self) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines no law.")

    @property
    def amount(self) -> laws.Real:
        return self.law.amount

    @property
    def s2(self) -> laws.Real:
        return self.law.s2

    @property
    def is_identity(self) -> bool:
        return self.law.is_identity


class OfRate(OfLaw):
    """A noise whose law has a rate. A subclass defines `law_class`.

    Attributes:
      rate: a number in the law's range, or a traced scalar.

    Raises:
      DropbnError: a rate outside the law's range.
    """

    law_class: ClassVar[Callable[..., laws.Law]] = laws.Dropout

    def __init__(self, rate: float, **flags: Unpack[Flags]) -> None:
        self.rate = rate
        super().__init__(**flags)
        _ = self.law  # Refuses a rate outside its range.

    @property
    def law(self) -> Any:
        return self.law_class(self.rate)
