"""The fields of a config and their types, by which the config.json of a workdir is checked."""

from ml_collections import ConfigDict

from dropbn.errors import DropbnError, shown
from dropbn.readers import NUMBER, Kinds, check_fields

FIELDS: dict[str, Kinds] = {
    "seed": int,
    "batch_size": int,
    "duration": str,
    "checkpoint_every": str,
    "log_every": str,
    "task": str,
    "data.name": str,
    "data.dir": str,
    "data.image_size": int,
    "data.split": str,
    "data.train_examples": int,
    "data.subset_seed": int,
    "data.crop_padding": int,
    "data.flip": bool,
    "data.resize": int,
    "data.crop_scale": [NUMBER],
    "data.part_size": int,
    "data.rotation": NUMBER,
    "data.jitter": NUMBER,
    "data.workers": int,
    "model.name": str,
    "model.num_classes": int,
    "model.depth": int,
    "model.width": int,
    "model.cardinality": int,
    "model.block": str,
    "model.head": str,
    "model.place": str,
    "model.activation": str,
    "model.init": str,
    "model.dtype": str,
    "model.noise.kind": str,
    "model.noise.rate": NUMBER,
    "model.noise.beta": NUMBER,
    "model.noise.block_size": int,
    "model.noise.scale_at": str,
    "model.noise.restore": str,
    "model.bn.momentum": NUMBER,
    "model.bn.epsilon": NUMBER,
    "model.bn.use_scale": bool,
    "model.bn.use_bias": bool,
    "model.bn.scale_init": NUMBER,
    "model.bn.bias_init": NUMBER,
    "model.bn.group_size": int,
    "model.sparsity.target": NUMBER,
    "model.sparsity.weight": NUMBER,
    "optimizer.learning_rate": NUMBER,
    "optimizer.momentum": NUMBER,
    "optimizer.nesterov": bool,
    "optimizer.weight_decay": NUMBER,
    "optimizer.schedule": str,
    "optimizer.decay_at": [str],
    "optimizer.decay_factor": NUMBER,
    "optimizer.warmup": str,
    "eval.train_examples": int,
}


def check(config: ConfigDict) -> None:
    """Raises for what is no config, or the first field that it lacks or has with another type."""
    if not isinstance(config, ConfigDict):
        raise DropbnError(f"The config is {shown(repr(config))}, not a ConfigDict.")
    check_fields(config.to_dict(), FIELDS, "The config")
