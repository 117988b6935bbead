"""Relation-based distillation (paper, section 3.3): how far apart the instances of an image are from each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from gid_cuda.distill.selection import front_order
from gid_cuda.ops import pairwise_distance


def relation_sum(teacher: Tensor, student: Tensor, counts: Tensor) -> Tensor:
    """Eq. 6 of each image, summed over the images; to be divided by the number of images with two instances or more.

    For the n instances of an image, mean over its n(n-1) pairs i != j of
        smooth_l1(||t_i - t_j|| / phi(t), ||s_i - s_j|| / phi(s))          with beta = 1,
    phi being the mean of those distances over the same pairs. phi(s) carries gradient too. Where phi is 0, as all
    instances are alike, the normalised distances are 0. An image with fewer than two instances gives 0.

    teacher, student: vectors (B, K, D) float32, the teacher's without gradient; counts (B,) int64, the filled slots of
    each image.
    """
    expected, found = normalised_distances(teacher, counts), normalised_distances(student, counts)
    # Off the pairs both are zero, so summing over all of (K, K) adds nothing.
    difference = smooth_l1_loss(found, expected, reduction="none", beta=1.0).sum(dim=(1, 2))
    return (difference / _pairs(counts)).sum()


def normalised_distances(x: Tensor, counts: Tensor) -> Tensor:
    """||x_i - x_j|| / phi(x) of the vectors x (B, K, D) of each image: (B, K, K), 0 where there is no pair."""
    distances = pairwise_distance(x, counts)
    mean = (distances.sum(dim=(1, 2)) / _pairs(counts))[:, None, None]
    positive = mean > 0
    return torch.where(positive, distances / torch.where(positive, mean, 1.0), 0.0)


def join_batch(x: Tensor, valid: Tensor) -> Tensor:
    """x (B, K, D) as one image (1, B*K, D) with the valid slots at the front, so that pairs go over the whole batch."""
    return x.flatten(0, 1)[front_order(valid.flatten())][None]


def _pairs(counts: Tensor) -> Tensor:
    """(B,) float32: the number of ordered pairs, at least 1 to divide by."""
    return (counts * (counts - 1)).clamp(min=1).float()
