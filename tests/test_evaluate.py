import numpy as np
import pytest
import torch
from torch import nn

from alexnet.training.evaluate import average, error_rates, predict_probabilities, rank_of_label


def test_error_rates_agree_with_sorting(rng):
    scores = torch.as_tensor(rng.normal(size=(200, 12)))
    labels = torch.as_tensor(rng.integers(0, 12, 200))
    order = np.argsort(-scores.numpy(), axis=1)
    top1 = (order[:, 0] != labels.numpy()).mean()
    top5 = (order[:, :5] != labels.numpy()[:, None]).all(axis=1).mean()
    assert error_rates(scores, labels) == pytest.approx((top1, top5))


def test_a_network_that_says_nothing_is_not_right_about_everything():
    labels = torch.arange(10)
    assert error_rates(torch.full((10, 10), 0.1), labels) == pytest.approx((0.9, 0.5))


def test_a_score_that_is_not_a_number_is_wrong():
    scores = torch.full((3, 10), torch.nan)
    assert error_rates(scores, torch.tensor([0, 4, 9])) == (1.0, 1.0)


def test_fewer_than_five_classes_are_always_among_the_first_five():
    assert rank_of_label(torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([2])).item() == 2
    assert error_rates(torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([2])).top5 == 0.0


def test_views_are_averaged_as_probabilities_not_as_logits():
    # One very sure view for class 0, two unsure ones for class 1: logits would say 0.
    logits = torch.tensor([[[50.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    images = logits[:, :, None, None, :].expand(1, 3, 1, 1, 2)

    class Reads(nn.Module):
        def forward(self, x):
            return x[:, 0, 0]

    probabilities, labels = predict_probabilities(Reads(), [(images, torch.tensor([1]))])
    sure, unsure = 1.0, 1 / (1 + np.e)
    np.testing.assert_allclose(probabilities[0, 0].item(), (sure + 2 * unsure) / 3, rtol=1e-12)
    assert probabilities.dtype == torch.float64
    assert labels.tolist() == [1]


def test_prediction_leaves_the_network_in_the_mode_it_was_in():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    batch = (torch.ones(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64))
    first, _ = predict_probabilities(model, [batch])
    second, _ = predict_probabilities(model, [batch])
    assert torch.equal(first, second)
    assert model.training


def test_an_ensemble_is_the_weighted_mean_of_its_members():
    one, two = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.3, 0.7]])
    torch.testing.assert_close(average([one, two]), torch.tensor([[0.6, 0.4]]))
    torch.testing.assert_close(average([one, two], [1, 2]), torch.tensor([[0.5, 0.5]]))


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0]])
def test_weights_that_fit_no_ensemble_are_refused(weights):
    with pytest.raises(ValueError, match="Expected 2 weights"):
        average([torch.ones(1, 2)] * 2, weights)
