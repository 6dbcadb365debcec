"""AnglE's angle objective: halves of a vector are the real and imaginary part of a complex one, whose angle
difference does not saturate where the cosine does.

Paper: Li & Li 2023, https://arxiv.org/abs/2309.12871 (equations 5 to 8). Code read: SeanLee97/AnglE.
Relations: sentence-transformers' AnglELoss is this term alone; conf/loss/angle.yaml adds the paper's other two, CoSENT
(cosent.py) and in-batch negatives (nt_xent.py, ScoredNTXent).
"""

from torch import Tensor

from unitsphere.losses.cosent import CoSENT


def angle_similarity(x: Tensor, y: Tensor) -> Tensor:
    """| sum of real and imaginary parts of (x / y) |y| / |x| |, for complex x, y of D / 2 numbers.

    Args:
        x: (N, D), D even.
        y: (N, D).

    Returns:
        (N).
    """
    (a, b), (c, d) = x.float().chunk(2, dim=1), y.float().chunk(2, dim=1)
    norms = x.float().norm(dim=1, keepdim=True) * y.float().norm(dim=1, keepdim=True)
    # x / y = ((ac + bd) + (bc - ad) i) / |y|^2; times |y| / |x|.
    return ((a * c + b * d + b * c - a * d) / norms).sum(dim=1).abs()


class Angle(CoSENT):
    """The ranking loss (cosent.py) of the angle similarities of scored pairs.

    Args:
        temperature: tau; 0.05 in the code of the paper and in sentence-transformers, 1 in the paper.
    """

    similarity = staticmethod(angle_similarity)
