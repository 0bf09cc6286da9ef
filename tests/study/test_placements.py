"""What a config says about its noise and its BN, in the papers' names."""

import pytest
from drawn_cells import digits

from configs import caffenet, kim2023, li2018, open_questions, small
from dropbn.study import papers, placements


@pytest.mark.parametrize(
    "study, arg, noise, place, words",
    [
        (small, "preresnet8,digits", placements.NONE, "", "PreResNet-8 on digits"),
        (small, "preresnet8,digits,place=P4", ("dropout", 0.2), "a", "PreResNet-8 on digits"),
        (small, "preresnet8,digits,width=4", placements.NONE, "", "PreResNet-8 of width 4 on digits"),
        (li2018, "preresnet110,cifar10,place=b,beta=0.1", ("uout", 0.1), "b", "PreResNet-164 on CIFAR-10"),
        (li2018, "wrn28_10,cifar100,place=a,rate=0", placements.NONE, "a", "WRN-28-10 on CIFAR-100"),
        (
            kim2023,
            "preresnet50_bottleneck,cifar10,place=P4",
            ("dropout", 0.2),
            "P4",
            "PreResNet-56 on CIFAR-10",
        ),
        (open_questions, "relu,before", ("dropout", 0.3), "", "LeNet on digits"),
        (open_questions, "both,bn", placements.NONE, "", "LeNet on digits"),
    ],
)
def test_config_in_the_papers_names(study, arg, noise, place, words):
    config = study.get_config(arg).to_dict()
    assert placements.noise(config) == noise
    assert placements.place(config) == place
    assert placements.describe(config) == words


@pytest.mark.parametrize(
    "block, place",
    [
        ("[bn relu conv bn relu conv | conv]", "a"),
        ("{bn relu conv bn relu conv}", "a"),
        ("[bn relu conv bn relu conv bn relu conv]", "P4"),
    ],
)
def test_p4_is_a_in_a_branch_of_two_convolutions(block, place):
    config = small.get_config("preresnet8,digits,place=P4").to_dict()
    config["model"]["block"] = block
    assert placements.place(config) == place


@pytest.mark.parametrize(
    "study, arg, side",
    [
        (caffenet, "caffenet,imagenet2012", "none"),
        (caffenet, "caffenet,imagenet2012,bn=after", "after"),
        (open_questions, "activation,before_sigmoid", "before"),
        (open_questions, "bn_and_pooling,before", None),
        (small, "preresnet8,digits,place=P5", None),
    ],
)
def test_side_of_bn(study, arg, side):
    assert placements.bn_side(study.get_config(arg).to_dict()) == side


def test_the_cell_without_noise_moves_no_bn():
    moved, plain = digits(",place=ic,rate=0"), digits(",place=a,rate=0")
    assert placements.without_noise([moved]) is None
    assert placements.without_noise([moved, plain]) == plain
    assert placements.without_noise([moved, plain, digits("")]).arg == "preresnet8,digits"


def test_every_family_of_li2018_has_its_data():
    for network in li2018.CIFAR_NETWORKS:
        beside = placements.li2018(li2018.get_config(f"{network},cifar100").to_dict())
        assert papers.rows("li2018_figure4", **beside) and beside["dataset"] == "C100"
