import pytest
import torch

from alexnet.model.norms import spatial_formula, spatial_norm
from alexnet.model.spec import Lrn

CODE = Lrn(size=5, alpha=1e-3, beta=0.75, k=1.0)
NORMS = [CODE, Lrn(size=3, alpha=0.7, beta=0.5, k=2.0)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", NORMS)
def test_gradcheck_holds_in_float64(norm, layout):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 6, 7, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: spatial_norm(x, norm), x)


def test_a_value_is_divided_by_the_squares_around_it():
    x = torch.zeros(1, 2, 7, 7)
    x[0, 0, 3, 3] = 10.0
    y = spatial_norm(x + 1.0, CODE)
    inner = 1.0 + 1e-3 * (24 + 11.0**2) / 25
    assert y[0, 0, 3, 3].item() == pytest.approx(11.0 * inner**-0.75, rel=1e-6)
    # At a corner nine of the 25 places are inside; the zeros beyond count.
    assert y[0, 1, 0, 0].item() == pytest.approx((1.0 + 1e-3 * 9 / 25) ** -0.75, rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_change_nothing(layout, monkeypatch):
    torch.manual_seed(0)
    x = (torch.randn(5, 4, 9, 9) * 30).to(memory_format=layout)
    monkeypatch.setattr("alexnet.model.norms.SPATIAL_BLOCK", 2 * 4 * 81)
    torch.testing.assert_close(spatial_norm(x, CODE), spatial_formula(x, CODE))
    assert spatial_norm(x, CODE).stride() == x.stride()


def test_bf16_is_computed_in_float32_and_rounded_once():
    x = (torch.randn(2, 4, 9, 9) * 30).bfloat16()
    exact = spatial_formula(x.double(), CODE)
    y = spatial_norm(x, CODE)
    assert y.dtype == torch.bfloat16
    assert ((y - exact).abs() <= exact.abs() * 2**-8 * 1.001).all()
