"""The sweeper of every sweep: Hydra's own, without the file that it writes.

Hydra's sweeper puts the whole configuration and every word that was typed into `multirun/multirun.yaml`, before anything is
checked: one file for all sweeps, written by those that are refused too. What a sweep was made of is in `sweep.json` and in
the records.
"""

# No postponed annotations here: Hydra's scan for plugins executes this file outside sys.modules, where dataclasses
# cannot look them up. Modules with an underscore are left out of that scan.

from dataclasses import dataclass
from typing import Any, List

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser


@dataclass
class GridConf(BasicSweeperConf):
    """`hydra.sweeper.*`: `params`, the axes of a study."""

    _target_: str = "hydra_plugins.xcls_launcher.grid.Grid"


ConfigStore.instance().store(group="hydra/sweeper", name="xcls_grid", node=GridConf, provider="xcls_launcher")


class Grid(BasicSweeper):
    """Every combination of the values that were listed."""

    def sweep(self, arguments: List[str]) -> Any:
        """Hands the jobs to the launcher, which composes every one before the first begins; Hydra's would do it here too."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        words = parser.parse_overrides([*self._parse_config(), *arguments])
        returns, first = [], 0
        for batch in self.split_arguments(words, self.max_batch_size):
            returns.append(self.launcher.launch(batch, initial_job_idx=first))
            first += len(batch)
        return returns
