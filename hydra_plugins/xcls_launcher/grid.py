"""The sweeper of every sweep: Hydra's own, without its file `multirun/multirun.yaml`.

Hydra's sweeper writes the configuration there before any check: one file for all sweeps, even refused ones. The
configuration of a sweep is in `sweep.json` and in the records instead.
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
    """Every combination of the listed values."""

    def sweep(self, arguments: List[str]) -> Any:
        """Passes all jobs to the launcher, which composes every one before the first begins."""
        assert self.hydra_context is not None and self.launcher is not None  # Hydra has called setup()
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        words = parser.parse_overrides([*self._parse_config(), *arguments])
        [jobs] = self.split_arguments(words, None)
        return [self.launcher.launch(jobs, initial_job_idx=0)]
