"""Weights & Biases: silent, offline by default, never in the way. Local files are the truth; this is a copy."""

from __future__ import annotations

import logging
import secrets
import threading
from pathlib import Path
from typing import Any, Callable

from xcls.record import plain
from xcls.schema import Wandb

INIT_SECONDS = 60
FINISH_SECONDS = 120


class Tracker:
    """One W&B run. Whatever goes wrong with it is one warning, and from then on nothing is sent."""

    def __init__(self, *, settings: Wandb, folder: Path, warn: Callable[[str], None]) -> None:
        self.settings = settings
        self.folder = Path(folder).resolve()
        self.warn = warn
        self.run: Any = None

    def start(
        self, *, name: str, group: str | None, tags: list[str], config: dict[str, Any], run_id: str | None
    ) -> str | None:
        """Begins a run, or goes on with `run_id`. Returns its id, None where tracking is off or failed.

        Offline, going on is a new segment under the same id, which `wandb sync` appends. So the step is our own field.
        """
        if self.settings.mode == "disabled":
            return run_id

        def begin() -> Any:
            import wandb

            logging.getLogger("wandb").setLevel(logging.ERROR)
            options = {"silent": True, "console": "off", "disable_git": True, "disable_code": True}
            run = wandb.init(
                project=self.settings.project,
                entity=self.settings.entity,
                dir=str(self.folder),
                mode=self.settings.mode,
                id=run_id or secrets.token_hex(4),
                resume="allow" if run_id and self.settings.mode == "online" else None,
                name=name,
                group=group,
                tags=[tag[:64] for tag in tags],
                config=plain(config),
                settings=wandb.Settings(init_timeout=INIT_SECONDS, **options),
            )
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            return run

        self.run = self._attempt(begin, INIT_SECONDS + 10)
        return self.run.id if self.run is not None else run_id

    def log(self, values: dict[str, Any]) -> None:
        """Sends one row; it names its own `step`."""
        if self.run is not None:
            self._attempt(lambda: self.run.log({key: value for key, value in values.items() if value is not None}))

    def keep(self, files: list[Path], name: str) -> None:
        """Sends files as one artifact of type `run`, those that exist."""
        if self.run is None:
            return

        def send() -> None:
            import wandb

            artifact = wandb.Artifact(name, type="run")
            for file in files:
                if file.is_file():
                    artifact.add_file(str(file))
            self.run.log_artifact(artifact)

        self._attempt(send, FINISH_SECONDS)

    def finish(self, exit_code: int) -> None:
        """Ends the run; `exit_code` other than 0 shows it as failed."""
        if self.run is not None:
            run, self.run = self.run, None
            self._attempt(lambda: run.finish(exit_code=exit_code), FINISH_SECONDS)

    def _attempt(self, action: Callable[[], Any], seconds: float | None = None) -> Any:
        """Runs `action`; an error, or more than `seconds`, is a warning and ends tracking. Returns its result."""
        results: list[Any] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(action())
            except (Exception, SystemExit) as error:  # wandb raises the latter too
                errors.append(error)

        if seconds is None:
            run()
        else:  # a server that does not answer must not hold the run
            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            thread.join(seconds)
            if thread.is_alive():
                errors.append(TimeoutError(f"no answer within {seconds:.0f} s"))
        if errors:
            self.run = None
            reason = str(errors[0]).strip().splitlines() or [""]
            what = f"{type(errors[0]).__name__}: {reason[0][:200]}"
            self.warn(f"W&B: {what}. Training goes on; all numbers are in metrics.csv.")
            return None
        return results[0] if results else None
