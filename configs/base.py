"""Every field of a config, with its default. A study's config starts from here and changes some.

A config file is code, which --config executes: run only those you trust.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.seed = 0  # of the initial weights, the order of the data, the augmentation and the noise
    config.batch_size = 128  # images a step, over all devices
    # A duration is a number and a unit: "164 epochs", "2000 steps" or "640000 examples". An epoch leaves out
    # the images that do not fill a batch, other ones each time. A study takes the accuracy of the last epoch,
    # or with validation images that of the epoch which is best on them.
    config.duration = "10 epochs"
    config.checkpoint_every = "1 epochs"  # the most that is lost when the machine dies
    config.log_every = "100 steps"  # how often the losses are checked; a run that diverged stops there

    config.task = "classify"  # or "reconstruct": outputs are pixels, "accuracy" is the explained variance

    config.data = data = ConfigDict()
    data.name = "digits"  # or "folder:PATH" with PATH/train/<class>/*.png, or "npz:PATH"
    data.dir = ""  # where prepared data is; "": tensorflow-datasets' default, ~/tensorflow_datasets
    data.image_size = 0  # side in pixels of streamed images, decoded as needed; 0: in memory as they are
    # "70:15:15" divides all images into train, validation and test, the same for every seed; "80:0:20" has no
    # validation images; "": as published.
    data.split = ""
    data.train_examples = 0  # number of training images; 0: all
    data.subset_seed = -1  # seed of a random draw of these images; -1: they are evenly spread over all
    # Augmentation of images in memory:
    data.crop_padding = 0  # pixels of zeros around a training image before a random crop of its size
    data.flip = False  # flips half of the training images from left to right; also if they are streamed
    # Streamed images (dropbn/data/photos.py):
    data.resize = 256  # pixels of the shorter side before the crop to image_size
    data.crop_scale = ()  # in training, (least, largest) share of the area of a random part; (): the whole
    data.part_size = 0  # side in pixels of that part before its middle is cropped; 0: image_size
    data.rotation = 0.0  # in training, the largest angle in degrees
    data.jitter = 0.0  # in training, the jitter of brightness, contrast and saturation
    data.workers = 0  # processes that read images; 0: threads

    config.model = model = ConfigDict()
    model.name = "preresnet"  # a family of dropbn/models
    model.num_classes = 0  # outputs; 0: as many as the data has classes
    model.depth = 20  # as in the network's name; each family says which depths it has
    model.width = 16  # channels of the first stage, mostly; each family says what it counts
    model.cardinality = 8  # groups of a resnext's convolutions
    # The order of the layers in a block and in the head; "": the published order of the model. The language
    # is described in dropbn/nn/order.py.
    model.block = ""
    model.head = ""
    # A named position (dropbn/nn/places.py): "a", "P4", "H4", "last", ...; "before", "after".
    model.place = ""
    model.activation = ""  # what "act" stands for in the orders
    # "he_fan_out" (dense layers: uniform, as PyTorch), "timm" (fan-out of one group, as its EfficientNet),
    # "he_fan_in", "orthogonal", "lsuv" (orthogonal, scaled on the first batch_size plain images) or
    # "hendrycks" (for the activation and the noise's rate).
    model.init = "he_fan_out"
    model.dtype = "float32"  # or "bfloat16": computation only; parameters and statistics stay float32

    model.noise = noise = ConfigDict()
    # "dropout", "gaussian", "uout", "spatial" (drops channels), "stochastic_depth" (drops a branch of an
    # example), "dropblock" or "alpha" (dropbn/nn/noise).
    noise.kind = "dropout"
    noise.rate = 0.0  # drop probability; gaussian has the variance of dropout with it; for all but uout
    noise.beta = 0.0  # half width; for uout
    noise.block_size = 0  # side in pixels of a dropped block; for dropblock; 0: 7, as published
    noise.scale_at = "train"  # or "test", as the original dropout; for dropout
    noise.restore = ""  # "sqrt_keep" or "exact" restores the variance in training; for dropout

    model.bn = bn = ConfigDict()
    bn.momentum = 0.9  # share of the old running statistics that a step keeps (PyTorch's 0.1)
    bn.epsilon = 1e-5
    bn.use_scale, bn.use_bias = True, True  # whether a learned scale and bias follow
    bn.scale_init, bn.bias_init = 1.0, 0.0
    bn.group_size = 0  # images per statistic; 0: the whole batch, over all devices

    model.sparsity = sparsity = ConfigDict()
    sparsity.target = 0.05  # the mean activation of every unit that "sparse" in an order aims at
    sparsity.weight = 0.01  # weight of the penalty

    config.optimizer = optimizer = ConfigDict()
    optimizer.learning_rate = 0.1
    optimizer.momentum = 0.9
    optimizer.nesterov = False
    optimizer.weight_decay = 1e-4  # L2, on all parameters (BN's and biases too), added to the gradient
    optimizer.schedule = "constant"  # "constant", "step" or "cosine" (to zero at the end)
    optimizer.decay_at = ("81 epochs", "122 epochs")  # when schedule="step" multiplies by decay_factor
    optimizer.decay_factor = 0.1
    optimizer.warmup = "0 epochs"  # linear from zero, before any schedule

    config.eval = evaluation = ConfigDict()
    # Number of training images, evenly spread and without augmentation, for the accuracy in test mode after
    # each epoch and for the tables of eval.py; 0: all.
    evaluation.train_examples = 10_000

    return config.lock()  # A config file that sets any other field is refused.
