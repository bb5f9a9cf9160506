"""The polynomial kernel, sign and all."""

import pytest
import torch

from bochner.kernels import Polynomial, kernel_from_name


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_against_powers(degree: int, offset: float, generator) -> None:
    x, y = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    truth = (x @ y.T + offset) ** degree
    assert torch.allclose(Polynomial(degree, offset)(x, y), truth, rtol=1e-12)


def test_zero_is_zero_and_nothing_overflows(generator) -> None:
    x = torch.tensor([[1.0, 0.0]])
    log_abs, sign = Polynomial(3, 0.0).signed_log(x, torch.tensor([[0.0, 1.0], [-1e30, 0.0]]))
    assert log_abs.tolist()[0][0] == -torch.inf
    assert sign.tolist() == [[0.0, -1.0]]
    assert float(log_abs[0, 1]) == pytest.approx(3 * 30 * 2.302585, rel=1e-5)
    assert Polynomial(2, 0.0).signed_log(x, -x).sign.tolist() == [[1.0]]


def test_no_logarithm_and_errors() -> None:
    x = torch.ones(1, 2)
    with pytest.raises(ValueError, match="use signed_log"):
        Polynomial().log(x, x)
    with pytest.raises(ValueError, match="degree=0 must be an integer"):
        Polynomial(0)
    with pytest.raises(ValueError, match="offset=-1"):
        Polynomial(2, -1)
    assert kernel_from_name("polynomial") == Polynomial(2, 1.0)
