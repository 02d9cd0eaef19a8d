"""river's Hoeffding adaptive tree with its leaves counted; apart from the adapter, so that it is imported late."""

from __future__ import annotations

from typing import Any

from river import tree


class CountedAdaptiveTree(tree.HoeffdingAdaptiveTreeClassifier):
    """Counts the leaves before every estimate of the tree's size.

    river 0.26 loses count of them where a subtree takes another's place; then the estimate divides by zero, which ended
    the learning, or the bound of memory is a wrong one.
    """

    def _estimate_model_size(self) -> None:
        leaves: list[Any] = self._find_leaves()
        self._n_active_leaves = sum(leaf.is_active() for leaf in leaves)
        self._n_inactive_leaves = len(leaves) - self._n_active_leaves
        river: Any = super()
        river._estimate_model_size()
