"""Tables as data frames, where pandas is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def data_frame(rows: Sequence[Any], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Make a `pandas.DataFrame`.

    Args:
        rows: Dicts by column, or sequences with the values of `columns`.
        columns: Names of the columns.

    Raises:
        ModuleNotFoundError: If pandas is not installed.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Data frames need pandas, which is not installed. HINT: pip install 'lightning-gnnopt[frames]'.",
            name="pandas",
        ) from error
    return pd.DataFrame(rows, columns=columns)
