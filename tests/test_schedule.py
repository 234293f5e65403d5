import math
import re

import pytest

from alexnet.training.schedule import (
    CAFFE,
    NET_145,
    NET_170,
    PlateauSchedule,
    PlateauState,
    StepSchedule,
)

START = PlateauState()


def test_net_145_cuts_its_rates_after_the_epochs_of_the_log():
    # layer-params-145.cfg: .01, .001 from epoch 25, 1e-4 from 51, 1e-5 from 79; biases stay at .02.
    rates = [
        NET_145.lr_factor("fc7", "weight", progress=epoch / 91, state=START) for epoch in range(91)
    ]
    changes = [(e, rates[e]) for e in range(1, 91) if rates[e] != rates[e - 1]]
    assert changes == [(25, 0.1), (51, 0.01), (79, 0.001)]
    assert {NET_145.lr_factor("fc7", "bias", progress=e / 91, state=START) for e in range(91)} == {
        1.0
    }


def test_net_145_freezes_conv1_at_epoch_72():
    frozen = [
        NET_145.lr_factor("conv1", "weight", progress=e / 91, state=START) == 0 for e in range(91)
    ]
    assert frozen.index(True) == 72
    assert all(frozen[72:])


def test_net_170_has_four_equal_stages_of_the_logged_rates():
    rates = [
        0.01 * NET_170.lr_factor("fc6", "weight", progress=part, state=START)
        for part in (0, 0.25, 0.5, 0.75)
    ]
    # .01, .001587, .000252, .00004 in the released files.
    assert rates == pytest.approx([0.01, 0.001587, 0.000252, 0.00004], rel=2e-3)


def test_caffe_cuts_every_hundred_thousand_of_its_steps():
    parts = (0, 99_999, 100_000, 200_000, 300_000, 400_000)
    rates = [
        CAFFE.lr_factor("conv3", "bias", progress=step / 450_000, state=START) for step in parts
    ]
    assert rates == pytest.approx([1, 1, 0.1, 0.01, 0.001, 0.0001])


def run_plateau(schedule, errors):
    """Factors for each epoch, until the schedule ends."""
    state, factors = START, []
    for error in errors:
        if schedule.ended(state):
            break
        factors.append(schedule.lr_factor("conv1", "weight", progress=0.0, state=state))
        state = schedule.after(error, state)
    return factors


def test_a_plateau_divides_by_ten_three_times_and_then_ends():
    falling = [0.9, 0.8, 0.7]
    factors = run_plateau(PlateauSchedule(patience=2), falling + [0.7] * 50)
    assert factors == pytest.approx([1] * 5 + [0.1] * 2 + [0.01] * 2 + [0.001] * 2)


def test_an_improvement_starts_the_waiting_anew():
    errors = [0.9, 0.9, 0.8, 0.8, 0.7, 0.7, 0.6]
    assert run_plateau(PlateauSchedule(patience=2), errors) == [1] * 7


def test_less_than_the_asked_improvement_is_none():
    errors = [0.9, 0.899, 0.898, 0.897, 0.896]
    factors = run_plateau(PlateauSchedule(patience=2, improvement=0.01), errors)
    assert factors == pytest.approx([1, 1, 1, 0.1, 0.1])


def test_stages_out_of_order_are_refused():
    with pytest.raises(ValueError, match="order of time"):
        StepSchedule(weights=((0.5, 0.1), (0.2, 0.01)))


@pytest.mark.parametrize("factor", [-0.1, math.nan, math.inf])
def test_a_factor_that_makes_no_rate_is_refused(factor):
    with pytest.raises(ValueError, match="factors >= 0"):
        StepSchedule(biases=((0.5, factor),))
    with pytest.raises(ValueError, match="divide > 1"):
        PlateauSchedule(divide=factor)


@pytest.mark.parametrize(
    "wrong", [{"patience": 0}, {"drops": -1}, {"divide": 1}, {"improvement": -0.1}]
)
def test_each_wrong_number_of_a_plateau_schedule_is_refused_by_name(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"{name}={re.escape(str(value))}"):
        PlateauSchedule(**wrong)
