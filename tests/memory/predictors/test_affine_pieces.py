from __future__ import annotations

import numpy as np
import pytest

from lightning_gnnopt.memory.predictors.affine_pieces import total_columns


def test_types_and_hops_are_summed() -> None:
    names = ["nodes_0[paper]", "nodes_1[author]", "edges_1[a__b__c]", "labels", "nodes"]
    np.testing.assert_array_equal(
        total_columns(names, keep_others=True), [[1, 1, 0, 0, 1], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
    )
    assert total_columns(names, keep_others=False).shape == (2, 5)


@pytest.mark.parametrize(("names", "missing"), [(["edges"], "nodes"), (["nodes", "edgeless"], "edges")])
def test_nothing_to_sum(names: list[str], missing: str) -> None:
    with pytest.raises(
        ValueError, match=rf"needs columns named {missing}_\*, but there are {', '.join(names)}. HINT: "
    ):
        total_columns(names, keep_others=False)
