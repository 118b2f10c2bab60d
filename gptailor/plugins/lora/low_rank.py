"""Matrices as products of two thin ones: `low_rank`, and the error of such a product."""

import hashlib

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_EXTRA = 16
"""Directions beyond the rank that a random projection looks at."""
_ROUNDS = 4
"""Times that a random projection goes through the matrix and back."""
_ENTRIES = 2**22
"""Entries of a product that are compared at once."""


def low_rank(
    matrix: Float64[Tensor, "m n"], rank: int, seed: str | None = None
) -> tuple[Float64[Tensor, "m r"], Float64[Tensor, "r n"]]:
    """Return the factors B and A of this rank with the product nearest to a matrix.

    The rank is at most the matrix's smaller side.

    Formula: with M = U S Vᵀ, B = U √S and A = √S Vᵀ of the largest singular values, which gives the
    least ‖M - BA‖ of all products of that rank (Eckart and Young 1936).
    Granularity: the whole matrix. U are eigenvectors of M Mᵀ, or V are eigenvectors of Mᵀ M where
    that is smaller; the other factor is the matrix projected on them. So BA is M but for rounding
    where the rank is the smaller side. With a `seed` they are sought in the range of M's product
    with random vectors, drawn by it and sent through M and Mᵀ four times (Halko, Martinsson, Tropp
    2011).
    Arithmetic: float64.
    Degenerate: directions in which the matrix is 0 give zeros; a matrix of 0s is B = A = 0.
    Paper: arXiv 0909.4061, of the random projection.
    """
    rows, columns = matrix.shape
    if rows > columns:
        b, a = low_rank(matrix.t(), rank, seed)
        return a.t(), b.t()
    rank = min(rank, rows)
    if seed is None or rank + _EXTRA >= rows:
        basis = _leading(matrix @ matrix.t(), rank)
    else:
        wide = _range(matrix, rank + _EXTRA, seed)
        small = wide.t() @ matrix
        basis = wide @ _leading(small @ small.t(), rank)
    a = basis.t() @ matrix
    root = torch.linalg.vector_norm(a, dim=1).sqrt()
    return basis * root, a / torch.where(root > 0, root, 1.0)[:, None]


def _leading(gram: Float64[Tensor, "k k"], rank: int) -> Float64[Tensor, "k r"]:
    """Return the eigenvectors of the largest eigenvalues, the largest first."""
    vectors: Float64[Tensor, "k k"] = torch.linalg.eigh(gram)[1]
    return vectors.flip(1)[:, :rank]


def _range(matrix: Float64[Tensor, "m n"], width: int, seed: str) -> Float64[Tensor, "m k"]:
    """Return orthonormal columns that span nearly all of the matrix's largest directions."""
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "little")
    generator = torch.Generator().manual_seed(key)
    drawn = torch.randn(matrix.shape[1], width, generator=generator, dtype=torch.float64)
    basis: Float64[Tensor, "m k"] = torch.linalg.qr(matrix @ drawn.to(matrix.device)).Q
    for _ in range(_ROUNDS):
        back = torch.linalg.qr(matrix.t() @ basis).Q
        basis = torch.linalg.qr(matrix @ back).Q
    return basis


def residual(
    matrix: Float64[Tensor, "m n"], b: Float[Tensor, "m r"], a: Float[Tensor, "r n"]
) -> float:
    """Return ‖M - BA‖, the Frobenius norm, in float64, with the factors as they are stored."""
    step = max(1, _ENTRIES // max(1, matrix.shape[1]))
    wide = a.double()
    total = 0.0
    for start in range(0, matrix.shape[0], step):
        rows = slice(start, start + step)
        total += float((matrix[rows] - b[rows].double() @ wide).square().sum())
    return float(total**0.5)
