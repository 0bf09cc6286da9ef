"""What the config of a study's cell says about its data, its noise and its BN, in the papers' names."""

from dropbn.study.finished_runs import Cell

NONE = ("", 0.0)  # the kind and the amount of no noise
# Families of Li et al. 2018 -> the name in the data of `papers`, and the paper's network.
_LI2018 = {
    "preresnet": ("PreResNet", "PreResNet-110 (bottlenecks)"),
    "resnext": ("ResNeXt", "ResNeXt-29"),
    "wrn": ("WRN", "WRN-28-10"),
    "densenet": ("DenseNet", "DenseNet-BC"),
}
_NETWORKS = {
    "preresnet": "PreResNet-{depth}",
    "preresnet_imagenet": "ResNetV2-{depth}",
    "resnet": "ResNetV1-{depth}",
    "resnext": "ResNeXt-{depth}",
    "wrn": "WRN-{depth}-{widening:g}",
    "densenet": "DenseNet-{depth}",
    "lenet": "LeNet",
    "caffenet": "CaffeNet",
    "googlenet": "GoogLeNet",
}
DATASETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "svhn_cropped": "SVHN",
    "imagenet2012": "ImageNet",
    "caltech101": "Caltech-101",
    "oxford_iiit_pet": "Oxford-IIIT Pet",
    "digits": "digits",
}
_TWO_CONVOLUTIONS = ("preresnet", "wrn", "densenet")  # families whose own branch has two


def describe(config: dict) -> str:
    """The network and the dataset of a config in words, such as "PreResNet-8 on digits".

    The width is told where it is not the published one.
    """
    model, dataset = config["model"], config["data"]["name"]
    network = _NETWORKS.get(model["name"], model["name"])
    network = network.format(depth=model["depth"], widening=model["width"] / 16)
    if model["name"] in ("preresnet", "resnet") and model["width"] != 16:
        network += f" of width {model['width']}"
    return f"{network} on {DATASETS.get(dataset, dataset)}"


def li2018(config: dict) -> dict[str, str] | None:
    """The columns that select Li et al.'s rows (`papers`) for a config; None for other networks."""
    if config["model"]["name"] not in _LI2018:
        return None
    dataset = "C100" if config["data"]["name"] == "cifar100" else "C10"
    return {"network": _LI2018[config["model"]["name"]][0], "dataset": dataset}


def describe_li2018(config: dict) -> str:
    """The network and the dataset of these rows in words; "" for other networks."""
    columns = li2018(config)
    if columns is None:
        return ""
    return f"{_LI2018[config['model']['name']][1]} on CIFAR-{columns['dataset'][1:]}"


def noise(config: dict) -> tuple[str, float]:
    """(kind, amount) of the noise, where the amount is beta for uout, else the rate; `NONE` without noise."""
    model, settings = config["model"], config["model"]["noise"]
    amount = settings["beta"] if settings["kind"] == "uout" else settings["rate"]
    stands = model["place"] or "drop" in _words(model["block"], model["head"])
    return (settings["kind"], amount) if amount and stands else NONE


def noise_words(noise: tuple[str, float]) -> str:
    """A kind and an amount of noise in words."""
    return "no noise" if noise == NONE else f"{noise[0]} {noise[1]:g}"


def place(config: dict) -> str:
    """The place, by Li et al.'s name if it has one: P4 is a and P6 is b in a branch of two convolutions."""
    model = config["model"]
    convolutions = _words(model["block"].partition("|")[0]).count("conv")
    if convolutions == 2 or (not model["block"] and model["name"] in _TWO_CONVOLUTIONS):
        return {"P4": "a", "P6": "b"}.get(model["place"], model["place"])
    return model["place"]


def bn_side(config: dict) -> str | None:
    """Where BN stands: "before" or "after" the activations, or "none"; None if an order places it."""
    model = config["model"]
    if model["place"] in ("before", "after"):
        return model["place"]
    return None if model["place"] or "bn" in _words(model["block"], model["head"]) else "none"


def without_noise(cells: list[Cell]) -> Cell | None:
    """The cell without noise; one without a place is preferred to one whose noise is 0."""
    plain = [cell for cell in cells if noise(cell.config) == NONE and place(cell.config) != "ic"]
    return min(plain, key=lambda cell: bool(cell.config["model"]["place"]), default=None)


def series(cells: list[Cell]) -> dict[str, dict[tuple, Cell]]:
    """place -> noise -> cell, for each place with noise, by ascending amount; places a and b come first."""
    found: dict[str, dict[tuple, Cell]] = {}
    plain = without_noise(cells)

    def rank(name):
        given = min(cell.config["model"]["place"] for cell in found[name].values())
        return next((i for i, initial in enumerate("abPGH") if given.startswith(initial)), 5), given

    for cell in sorted(cells, key=lambda cell: place(cell.config) != cell.config["model"]["place"]):
        if place(cell.config) not in ("", "before", "after"):
            found.setdefault(place(cell.config), {}).setdefault(noise(cell.config), cell)
    found = {name: found[name] for name in sorted(found, key=rank) if found[name].keys() != {NONE}}
    for name, curves in found.items():
        if plain and name != "ic":  # "ic" moves BN too.
            curves.setdefault(NONE, plain)
    return {name: dict(sorted(curves.items())) for name, curves in found.items()}


def _words(*orders):
    """The words of order strings; configs import this file, and `order.parse` would make them import JAX."""
    return " ".join(orders).translate(str.maketrans("[{|}]", "     ")).split()
