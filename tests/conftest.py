"""Eight simulated CPU devices, the doorways' draws and convolutions, and directories of the tests' own."""

import atexit
import importlib.metadata
import os
import shutil
import tempfile

# Compilation is the cost of most tests: programs that are not optimized compile in half the time. XLA refuses
# flags that it does not know; the last one has gone in jaxlib 0.11.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        *["--xla_cpu_use_fusion_emitters=false"] * importlib.metadata.version("jaxlib").startswith("0.10."),
        os.environ.get("XLA_FLAGS", ""),
    ]
)
os.environ["JAX_PLATFORMS"] = "cpu"
# Data is prepared once, and what one test compiled the others and their processes load.
if "TFDS_DATA_DIR" not in os.environ:
    os.environ["TFDS_DATA_DIR"] = tempfile.mkdtemp(prefix="dropbn-data-")
    atexit.register(shutil.rmtree, os.environ["TFDS_DATA_DIR"], ignore_errors=True)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="dropbn-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import absl.logging
import hypothesis
import jax
import pytest

from dropbn import runtime

runtime.convolve_on_all_cores()
jax.config.update("jax_threefry_partitionable", False)
absl.logging.set_verbosity(absl.logging.ERROR)
hypothesis.settings.register_profile("dropbn", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("dropbn")


@pytest.fixture
def tiny_config():
    """A network of three blocks, four channels wide, on digits for two epochs."""
    from configs import digits

    config = digits.get_config()
    config.model.depth = 8
    config.model.width = 4
    config.duration = "2 epochs"
    config.batch_size = 64
    config.eval.train_examples = 300
    return config


@pytest.fixture
def mlp_config(tiny_config):
    """A perceptron whose hidden layer has dropout before BN: it compiles in a second; 22 steps an epoch."""
    model = tiny_config.model
    model.name, model.depth, model.width = "mlp", 1, 16
    model.block, model.head = "dense drop bn relu", "dense"
    tiny_config.eval.train_examples = 100
    return tiny_config


@pytest.fixture
def mlp_flags():
    """What makes the perceptron of `mlp_config` of train.py's digits."""
    return [
        "--config.model.name=mlp",
        "--config.model.depth=1",
        "--config.model.width=16",
        "--config.model.block=dense drop bn relu",
        "--config.model.head=dense",
        "--config.eval.train_examples=100",
    ]


@pytest.fixture
def same_draws(monkeypatch):
    """Keys of zeros, by which Linen and NNX draw the same. They still depend on the keys of the call."""
    import flax.linen as nn
    from flax import nnx

    from dropbn.diagnose import registry

    def zeros(key):
        is_typed = jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(0 * (jax.random.key_data(key) if is_typed else key))

    # Programs that were compiled with other draws are not found again: they belong to other registered types.
    monkeypatch.setitem(registry.NOISES, type("Unseen", (), {}), registry.Switch("deterministic"))
    make_rng, draw = nn.Module.make_rng, nnx.RngStream.__call__
    monkeypatch.setattr(nn.Module, "make_rng", lambda self, name="params": zeros(make_rng(self, name)))
    monkeypatch.setattr(nnx.RngStream, "__call__", lambda self: zeros(draw(self)))
