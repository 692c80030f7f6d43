import pytest
import torch
from torch import nn

from modeling.pooling import POOLINGS, CovariancePool, MeanStdPool, covariance, matrix_sqrt


def exact_sqrt(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.clamp(min=0).sqrt().diag_embed() @ vectors.mT


def positive(size, condition):
    """A positive definite matrix with eigenvalues from 1 down to 1 / condition."""
    vectors = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q
    values = torch.logspace(0, -torch.tensor(float(condition)).log10().item(), size, dtype=torch.float64)
    return (vectors @ values.diag() @ vectors.mT)[None]


def test_mean_and_deviation_of_each_feature():
    x = torch.randn(2, 3, 4, 5)
    pooled = MeanStdPool(3, eps=0)(x)
    for image in range(2):
        for feature in range(3):
            values = x[image, feature].flatten().tolist()
            mean = sum(values) / 20
            deviation = (sum((value - mean) ** 2 for value in values) / 20) ** 0.5
            assert pooled[image, [feature, 3 + feature]].tolist() == pytest.approx([mean, deviation], abs=1e-5)


def test_covariance_of_each_pair_of_features():
    x = torch.randn(2, 3, 4, 5)
    for image, found in zip(x, covariance(x, eps=0), strict=True):
        assert torch.allclose(found, torch.cov(image.flatten(1), correction=0), atol=1e-6)


@pytest.mark.parametrize(("condition", "iterations", "error"), [(10, 5, 0.05), (10, 15, 1e-9), (1e4, 25, 1e-6)])
def test_iterated_square_root_against_eigenvalues(condition, iterations, error):
    matrix = 7 * positive(12, condition)
    wanted = exact_sqrt(matrix)
    assert (matrix_sqrt(matrix, iterations) - wanted).norm() <= error * wanted.norm()


def test_square_root_of_a_covariance_with_fewer_positions_than_features():
    matrix = covariance(torch.randn(3, 24, 3, 3), eps=1e-5)  # rank 8
    wanted = exact_sqrt(matrix)
    errors = [(matrix_sqrt(matrix, count) - wanted).norm() / wanted.norm() for count in (1, 3, 5, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01


def test_covariance_pooling_is_the_upper_triangle_of_the_root():
    pool = CovariancePool(6, reduced=4, iterations=20).eval()
    x = torch.randn(2, 6, 5, 5)
    wanted = exact_sqrt(covariance(pool.reduce(x), pool.eps))
    by_hand = torch.stack([wanted[:, i, j] for i in range(4) for j in range(i, 4)], dim=1)
    assert torch.allclose(pool(x), by_hand, atol=1e-3)
    assert pool.out_features == 10


@pytest.mark.parametrize("name", POOLINGS)
def test_positions_have_no_order(name):
    pool = POOLINGS[name](8).eval()
    x = torch.randn(2, 8, 4, 6)
    shuffled = x.flatten(2)[:, :, torch.randperm(24)].unflatten(2, (6, 4))
    assert torch.allclose(pool(x), pool(shuffled), atol=1e-5)
    assert pool(x).shape == (2, pool.out_features)


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("shape", [(2, 8, 3, 3), (2, 8, 1, 1)])
def test_even_images_have_finite_gradients(name, shape):
    pool = POOLINGS[name](8)
    x = torch.ones(shape, requires_grad=True)
    pool(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in pool.parameters())


def test_five_iterations_are_the_papers():
    pool = CovariancePool(6, reduced=4).eval()
    x = torch.randn(2, 6, 5, 5)
    root = matrix_sqrt(covariance(pool.reduce(x), pool.eps), 5)
    assert torch.allclose(pool(x), root.flatten(1)[:, pool.upper], atol=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_statistics_are_taken_in_full_precision(autocast):
    """The deviation of close numbers, which bfloat16 cannot tell from one another once they are squared."""
    x = (1 + 2**-7 * torch.tensor([0.0, 1.0]).repeat(8)).view(1, 1, 4, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        pooled = MeanStdPool(1, eps=0)(x.bfloat16())
    assert pooled[0, 1].item() == pytest.approx(2**-8, rel=0.01)


def test_covariances_are_taken_in_full_precision():
    x = torch.randn(2, 6, 5, 5, dtype=torch.bfloat16).relu()
    pool = CovariancePool(6)
    pool.reduce = nn.Identity()
    pool.upper = torch.arange(36)
    root = matrix_sqrt(covariance(x.float(), pool.eps), 5).flatten(1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pool(x), root)


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_output_is_of_the_inputs_precision(name, dtype):
    pool, x = POOLINGS[name](8).eval().to(dtype), torch.randn(2, 8, 4, 4, dtype=dtype)
    assert pool(x).dtype == dtype
    if dtype == torch.float64:
        assert torch.allclose(pool(x).float(), pool.float()(x.float()), atol=1e-4)
