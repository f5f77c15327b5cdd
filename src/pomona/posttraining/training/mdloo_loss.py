"""MDLOO's step: the loss of sampled responses and its gradient with respect to the logits (report, 4.6).

    L = 1/N sum_i [ - rho_i Ahat_i + gamma KL_i ],    rho_i = pi(y_i | x) / pi_k(y_i | x)

pi_k is the policy at the start of the iteration, from which the responses were sampled; rho and KL are of
whole responses (the response is one action). Two estimators of KL(pi || pi_k):

    exact    KL_i = sum over the tokens t of y_i of  sum_v pi(v | s_t) [log pi(v | s_t) - log pi_k(v | s_t)]
             over the full vocabulary; the prefixes s_t are those that pi_k sampled
    sampled  KL_i = rho_i log rho_i - rho_i + 1,  never negative, and unbiased under pi_k

    d L / d logits_t = c_i (one-hot(y_t) - pi_t)  [+ gamma / N  pi_t * (log pi_t - log pi_k,t - KL_t)]
    c_i = ( - rho_i Ahat_i  [+ gamma rho_i log rho_i] ) / N

The first bracket is the exact estimator's, the second the sampled one's. The mathematics runs in float64 on
float64 logits and in float32 otherwise.

Shape letters: C tokens of all responses of a pass, N responses, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pomona.posttraining.mdloo_options import KlEstimator

CACHED_TOKENS = 32  # whose logits fit the processor's cache in float32
BLOCK_TOKENS = 512  # of one product with the head
MAX_LOG_RATIO = 30.0  # beyond it exp() would leave float32; a policy that far away has long been lost


@dataclass(frozen=True)
class Responses:
    """What a pass holds. owner_C: to which of the N responses a token belongs."""

    tokens_C: Tensor
    owner_C: Tensor
    count: int

    def sums(self, values_C: Tensor) -> Tensor:
        """[N]: the values of every response's tokens added up."""
        return values_C.new_zeros(self.count).index_add_(0, self.owner_C, values_C)


def log_probs(logits_CV: Tensor, responses: Responses, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """([C]: log pi of every token, [C]: log of the sum of exp(logits / temperature))."""
    kind = _kind(logits_CV)
    log_p, log_z = (torch.empty(len(logits_CV), dtype=kind) for _ in range(2))
    for low in range(0, len(logits_CV), CACHED_TOKENS):
        part = slice(low, low + CACHED_TOKENS)
        scaled = logits_CV[part].to(kind) / temperature
        log_z[part] = scaled.logsumexp(-1)
        log_p[part] = scaled.gather(1, responses.tokens_C[part, None])[:, 0] - log_z[part]
    return log_p, log_z


def mirror_descent_coefficients(
    log_ratio_N: Tensor,
    advantage_N: Tensor,
    *,
    gamma: float,
    estimator: KlEstimator,
    total: int,
    max_ratio: float | None = None,
) -> Tensor:
    """[N]: c_i, what the gradient of log pi(y_i | x) is multiplied with. max_ratio: rho counts no more than
    this in the first term (truncated importance sampling); None: as it is."""
    ratio = log_ratio_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    found = -(ratio if max_ratio is None else ratio.clamp(max=max_ratio)) * advantage_N
    if estimator == "sampled":
        found = found + gamma * ratio * log_ratio_N
    return found / total


def sampled_kl(log_ratio_N: Tensor) -> Tensor:
    """[N]: rho log rho - rho + 1."""
    ratio = log_ratio_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return ratio * log_ratio_N - ratio + 1


def logits_gradient(
    logits_CV: Tensor,
    responses: Responses,
    log_z_C: Tensor,
    coefficient_N: Tensor,
    *,
    kl_weight: float = 0.0,
    old_logits: Callable[[slice], Tensor] | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Puts the gradient of  sum_i c_i log pi(y_i | x) + kl_weight sum_t KL_t  in the logits' place.

    old_logits: gives pi_k's logits of a block of tokens, for the KL over the full vocabulary; without it
    there is none. Gives [C] KL_t in nats.
    """
    kind = _kind(logits_CV)
    kl_C = torch.zeros(len(logits_CV), dtype=kind)
    coefficient_C = coefficient_N.to(kind)[responses.owner_C]
    for start in range(0, len(logits_CV), BLOCK_TOKENS):
        end = min(start + BLOCK_TOKENS, len(logits_CV))
        old = None if old_logits is None else old_logits(slice(start, end))
        for low in range(start, end, CACHED_TOKENS):
            part = slice(low, min(low + CACHED_TOKENS, end))
            log_pi = (logits_CV[part].to(kind) / temperature).sub_(log_z_C[part, None])
            pi = log_pi.exp()
            grad = pi * -coefficient_C[part, None]
            place = responses.tokens_C[part, None]
            grad.scatter_add_(1, place, coefficient_C[part, None])
            if old is not None:
                log_old = (old[low - start : part.stop - start].to(kind) / temperature).log_softmax(-1)
                gap = log_pi.sub_(log_old)
                kl = (pi * gap).sum(-1)
                kl_C[part] = kl
                grad.add_(gap.sub_(kl[:, None]).mul_(pi), alpha=kl_weight)
            logits_CV[part].copy_(grad.div_(temperature))
    return kl_C


def entropies(logits_CV: Tensor, log_z_C: Tensor, temperature: float = 1.0) -> Tensor:
    """[C]: of every distribution, in nats:  log z - sum_v pi_v z_v."""
    kind = _kind(logits_CV)
    found = torch.empty(len(logits_CV), dtype=kind)
    for low in range(0, len(logits_CV), CACHED_TOKENS):
        part = slice(low, low + CACHED_TOKENS)
        log_pi = (logits_CV[part].to(kind) / temperature).sub_(log_z_C[part, None])
        found[part] = -(log_pi.exp() * log_pi).sum(-1)
    return found


def _kind(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
