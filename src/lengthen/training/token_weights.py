"""Loss weights of tokens by the length of the prefix before them.

In packed data, targets with a long prefix are rare: all documents have a 10th token, few a 10,000th. EXACT
(arXiv 2605.10544, of which the abstract was at hand) weights targets by the inverse frequency of their prefix's length:

    weight(p) = min(documents / documents longer than p, 5)

where p tokens of the same document come before the target. The cap is ours: of the longest prefixes there is one.
Only ratios matter, since a step's loss is divided by the sum of its weights.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lengthen.data.blocks import Block

__all__ = ["PrefixWeights"]

CAP = 5.0
_SAMPLE = 512  # sequences whose documents are counted; those of a mixture are made when they are looked at


class PrefixWeights:
    """The weight of each target of a block.

    Args:
        blocks: of the run, at least one; the documents of the first 512 are counted.

    Attributes:
        largest: of the weights that these documents give.
    """

    def __init__(self, blocks: Sequence[Block]):
        lengths = np.sort([length for block in blocks[:_SAMPLE] for length in block.segments])
        longer = len(lengths) - np.searchsorted(lengths, np.arange(lengths[-1]), side="right")
        self._weights = np.minimum(len(lengths) / longer, CAP).astype(np.float32)
        self.largest = float(self._weights[-1])

    def apply(self, block: Block) -> Block:
        """The block with these weights, times those that it has already."""
        prefixes = np.concatenate([np.arange(length) for length in block.segments])
        weights = self._weights[np.minimum(prefixes, len(self._weights) - 1)]
        return replace(block, loss_weights=weights if block.loss_weights is None else weights * block.loss_weights)
