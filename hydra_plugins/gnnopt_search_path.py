"""Lets any Hydra application in this environment choose from our config groups, e.g. ``+experiment=cora``."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class GnnOptSearchPathPlugin(SearchPathPlugin):
    """Appends our configs to the search path, last, so that an application's own configs win."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Hydra's hook."""
        search_path.append(provider="lightning-gnnopt", path="pkg://lightning_gnnopt.conf")
