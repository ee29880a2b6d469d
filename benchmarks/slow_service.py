"""The web service of `examples/service` with a stage that becomes slow at SIGUSR1.

python benchmarks/slow_service.py FOLDER PORT STAGE MILLISECONDS MEASURE
"""

import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import uvicorn

from examples.service.app import Settings, create_app
from imta_jax.inference import load_exported
from imta_jax.inference.engine.engine import Engine


class SlowStage:
    """Makes every program that contains a stage sleep first, once it is switched on.

    Args:
      stage: index of the stage, from 0.
      seconds: duration of the sleep.
    """

    def __init__(self, stage: int, seconds: float):
        self.on = False
        run = Engine._run

        def slow_run(engine: Engine, program: Any, segment: Any, *arguments: Any) -> Any:
            if self.on and segment.first <= stage <= segment.last:
                time.sleep(seconds)
            return run(engine, program, segment, *arguments)

        Engine._run = slow_run

    def toggle(self, *_: Any) -> None:
        """Switches the stage between fast and slow."""
        self.on = not self.on


def main() -> None:
    """Serves until SIGTERM."""
    folder, port, stage, milliseconds, measures = sys.argv[1:]
    slow = SlowStage(int(stage), float(milliseconds) / 1e3)
    signal.signal(signal.SIGUSR1, slow.toggle)
    settings = Settings(num_validation=1000, measure=bool(measures))
    app = create_app(lambda: load_exported(folder), settings)
    uvicorn.run(
        app,
        port=int(port),
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=30,
        # A connection that the service closes while a request is on its way loses the request.
        timeout_keep_alive=600,
    )


if __name__ == "__main__":
    main()
