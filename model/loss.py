"""The loss of guessing the next item among a sample of the others.

Letters: `N` clicks to guess, `K` sampled negatives.
"""

import math

import torch
from torch import Tensor


def sampled_softmax_loss(
    target_logits: Tensor,
    negative_logits: Tensor,
    targets: Tensor,
    negatives: Tensor,
    negative_log_q: Tensor,
) -> Tensor:
    """Cross entropy over the vocabulary, its normaliser estimated from negatives drawn with replacement from any Q.

    Importance sampling (Bengio & Senécal 2008; for recommenders Yi et al. 2019): a negative i counts
    exp(logit) / (K · Q(i)), so that in expectation the negatives sum to the whole vocabulary. The target is in the
    normaliser for certain, so it is not corrected, and where it was drawn as a negative too it is masked.

    target_logits (N,), negative_logits (N, K), targets (N,) rows, negatives (K,) or (N, K) rows, negative_log_q (K,) or
    (N, K): log of the probability with which one draw yields that row -> (N,) losses in nats, not yet averaged.
    """
    corrected = negative_logits.float() - negative_log_q - math.log(negatives.shape[-1])  # (N, K)
    corrected = corrected.masked_fill(negatives == targets[:, None], -torch.inf)
    target = target_logits.float()[:, None]  # (N, 1)
    return torch.logsumexp(torch.cat([target, corrected], 1), 1) - target[:, 0]
