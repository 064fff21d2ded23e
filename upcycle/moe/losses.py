"""Auxiliary losses of routers: one value for each group of tokens of each layer, never pooled over layers.

Pooling hides collapse: where every layer sends all its tokens to an expert of its own, the pooled load is even. A mean
over sequences does not depend on how a batch is cut into smaller ones; the loss of a batch as one group does.

| loss | value | where routing is even |
|---|---|---|
| balance | `E * sum_i f_i P_i`, f the shares of the choices, P the mean probabilities (2101.03961, eq. 4-6) | 1 |
| importance | `Var(I) / Mean(I)^2`, I the sums of the probabilities (1701.06538, eq. 6-7) | 0 |
| z | mean of `(log sum_i exp z_i)^2` over tokens (2202.08906, eq. 5) | (ln E)^2 for logits of zero |

transformers counts every one of the K choices in full, so that its balance loss is K times this one: its
`router_aux_loss_coef` c, which weighs one pooled loss, is the coefficient K * c / L of each of L layers' losses here.

Every function here is a loss: it has a row of its name in `upcycle.figures` and a coefficient in
`upcycle.requests.train` (`z_loss` has `z_coef`).

Shapes: G groups, S tokens of a group, E experts, K top-k.
"""

import torch
from torch import Tensor

from upcycle.moe.groups import Groups
from upcycle.moe.measures import load


def balance_loss(groups: Groups) -> Tensor:
    """Return the load-balancing loss `(G,)`, float32.

    With the load of a whole batch that is seen in pieces (`groups.load_GE`), the mean over pieces, weighted by their
    tokens, is the loss of the batch as one group.
    """
    load_GE = load(groups) if groups.load_GE is None else groups.load_GE
    return load_GE.shape[-1] * (load_GE * groups.mean(groups.probabilities_GSE.float())).sum(-1)


def importance_loss(groups: Groups) -> Tensor:
    """Return the squared coefficient of variation `(G,)`, float32, of the experts' summed probabilities."""
    importance_GE = groups.mean(groups.probabilities_GSE.float())  # the number of tokens cancels
    mean_G = importance_GE.mean(-1)
    return importance_GE.var(-1, correction=0) / mean_G.square().clamp(min=torch.finfo(torch.float32).tiny)


def z_loss(groups: Groups) -> Tensor:
    """Return the router z-loss `(G,)`, float32, of raw logits: keeps them small, where float32 and bf16 agree."""
    return groups.mean(torch.logsumexp(groups.logits_GSE.float(), dim=-1, keepdim=True).square()).squeeze(-1)
