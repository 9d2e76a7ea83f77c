"""Tools for looking at single heads, those that Lieberum et al. 2023 (arXiv 2307.09458) use on Chinchilla 70B.

direct      direct logit attribution: an analysis of its own, since it scores every head
attention   attention by class of token: a table
low_rank    how few dimensions of a head's q, k, v or OV carry the task: a table
classes     what the classes of tokens are
"""

from workbench.analyses.head_tools.attention import attention_by_class
from workbench.analyses.head_tools.direct import DirectParams, direct_logit_attribution
from workbench.analyses.head_tools.low_rank import low_rank

__all__ = ["DirectParams", "attention_by_class", "direct_logit_attribution", "low_rank"]
