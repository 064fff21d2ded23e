"""Auxiliary losses of routers: one value for each layer and group of tokens, never pooled over layers.

Pooling hides collapse: where every layer sends all its tokens to an expert of its own, the pooled load is even. A
group is what a loss is computed over, a sequence or all tokens of a batch; a mean over sequences does not depend on how
a batch is cut into smaller ones, the loss of a batch as one group does.

| loss | value | where routing is even |
|---|---|---|
| balance | `E * sum_i f_i P_i`, f the shares of the choices, P the mean probabilities (2101.03961, eq. 4-6) | 1 |
| importance | `Var(I) / Mean(I)^2`, I the sums of the probabilities (1701.06538, eq. 6-7) | 0 |
| z | mean of `(log sum_i exp z_i)^2` over tokens (2202.08906, eq. 5) | (ln E)^2 for logits of zero |

transformers counts every one of the K choices in full, so that its balance loss is K times this one: its
`router_aux_loss_coef` c, which weighs one pooled loss, is the coefficient K * c / L of each of L layers' losses here.

Shapes: G groups, S tokens of a group, E experts, K top-k. A mask `(G, S)` is true for tokens and false for padding; a
group without tokens has the loss 0.
"""

import torch
from torch import Tensor


def expert_load(chosen_GSK: Tensor, experts: int, mask_GS: Tensor | None = None) -> Tensor:
    """Return the share `(G, E)`, float32, of the choices that each expert gets; sums to one, 1/E is even."""
    groups, tokens, top_k = chosen_GSK.shape
    ones_GSK = torch.ones_like(chosen_GSK, dtype=torch.float32)
    if mask_GS is not None:
        ones_GSK = ones_GSK * mask_GS[:, :, None]
    counts_GE = ones_GSK.new_zeros(groups, experts)
    counts_GE.scatter_add_(1, chosen_GSK.reshape(groups, tokens * top_k), ones_GSK.reshape(groups, tokens * top_k))
    return counts_GE / counts_GE.sum(-1, keepdim=True).clamp(min=1)


def balance_loss(
    probabilities_GSE: Tensor, chosen_GSK: Tensor, mask_GS: Tensor | None = None, load_E: Tensor | None = None
) -> Tensor:
    """Return the load-balancing loss `(G,)`, float32, of probabilities that sum to one over experts.

    `load_E` replaces each group's own load, which has no gradient: with the load of a whole batch that is seen in
    pieces, the mean over pieces, weighted by their tokens, is the loss of the batch as one group.
    """
    experts = probabilities_GSE.shape[-1]
    load = expert_load(chosen_GSK, experts, mask_GS) if load_E is None else load_E
    return experts * (load * _mean(probabilities_GSE.float(), mask_GS)).sum(-1)


def importance_loss(probabilities_GSE: Tensor, mask_GS: Tensor | None = None) -> Tensor:
    """Return the squared coefficient of variation `(G,)`, float32, of the experts' summed probabilities."""
    importance_GE = _mean(probabilities_GSE.float(), mask_GS)  # the number of tokens cancels
    mean_G = importance_GE.mean(-1)
    return importance_GE.var(-1, correction=0) / mean_G.square().clamp(min=torch.finfo(torch.float32).tiny)


def z_loss(logits_GSE: Tensor, mask_GS: Tensor | None = None) -> Tensor:
    """Return the router z-loss `(G,)`, float32, of raw logits: keeps them small, where float32 and bf16 agree."""
    return _mean(torch.logsumexp(logits_GSE.float(), dim=-1, keepdim=True).square(), mask_GS).squeeze(-1)


def _mean(values_GSX: Tensor, mask_GS: Tensor | None) -> Tensor:
    """The mean over the tokens of each group `(G, X)`."""
    if mask_GS is None:
        return values_GSX.mean(1)
    kept_GSX = torch.where(mask_GS[:, :, None].bool(), values_GSX, 0)  # not a product: padding may be NaN
    return kept_GSX.sum(1) / mask_GS.sum(1, keepdim=True).clamp(min=1)
