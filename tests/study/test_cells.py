"""The words of a cell: which are refused, and what a rate of 0 means."""

import pytest

from configs import chen2019, kim2023, li2018
from dropbn.errors import DropbnError


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("preresnet110", "network,dataset first"),
        ("preresnet111,cifar10", "Did you mean 'preresnet110'"),
        ("preresnet110,cifar10,place=P4", "Unknown place 'P4'"),
        ("preresnet110,cifar10,quack", "Unknown word 'quack'. Did you mean 'quick'"),
        ("preresnet110,cifar10,rat=0.5", "Did you mean 'rate='"),
        ("preresnet110,cifar10,rate=much", "'rate=much': rate takes a number"),
        ("preresnet110,cifar10,rate=1/0", "'rate=1/0': rate takes a number"),
    ],
)
def test_words_that_mean_nothing(arg, message):
    with pytest.raises(DropbnError, match=message):
        li2018.get_config(arg)


def test_a_rate_of_zero_is_a_control():
    for study, arg, default in (
        (kim2023, "preresnet110,cifar10,place=P6", 0.2),
        (chen2019, "preresnet50,cifar10,order=ic_conv_relu", 0.05),
    ):
        assert study.get_config(arg).model.noise.rate == default
        assert study.get_config(f"{arg},rate=0").model.noise.rate == 0
    assert kim2023.get_config("preresnet110,cifar10,place=P6,beta=0.1").model.noise.rate == 0
