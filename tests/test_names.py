from __future__ import annotations

import pytest

from lightning_gnnopt._names import unknown_name


@pytest.mark.parametrize(
    ("name", "known", "message"),
    [
        ("gatt", ["gcn", "gat"], "Unknown model 'gatt'. Did you mean 'gat'? Known: gat, gcn."),
        ("ADAM", ["Adam", "SGD"], "Unknown model 'ADAM'. Did you mean 'Adam'? Known: Adam, SGD."),
        ("xyz", ["gcn", "gat"], "Unknown model 'xyz'. Known: gat, gcn."),
        ("xyz", [], "Unknown model 'xyz'. Known: none."),
        (3, ["3d"], "Unknown model 3. Did you mean '3d'? Known: 3d."),
    ],
)
def test_unknown_name(name: object, known: list[str], message: str) -> None:
    assert unknown_name("model", name, known) == message
