"""A sound in, presets out, in a browser.

    python -m launch.app

opens the proxy of Dexed that comes with the project, or `--run RUN`, and
prints the address of a page: drop or record a sound, hear presets that are
found while the search goes on, keep parts of one and go on from there,
download it. It listens on this machine only and asks no other; what it has
found is forgotten when it ends (Ctrl-C).
"""

from absl import flags

from launch import cli
from launch.match import files, judge
from launch.runs import checkpoints, devices, noise

_RUN = flags.DEFINE_string("run", "pretrained:dexed", "Run directory.")
_PRESETS = flags.DEFINE_string(
    "presets", None, "File or folder of banks, in place of the run's."
)
_PLUGIN = flags.DEFINE_string(
    "plugin", None, "Path of the VST3 plug-in, in place of the run's."
)
_PORT = flags.DEFINE_integer(
    "port",
    8470,
    "Where the page is; 0: any that is free.",
    lower_bound=0,
    upper_bound=65_535,
)
_SECONDS = flags.DEFINE_float("seconds", 60.0, "Time for a search, at first.")
_EVALUATIONS = flags.DEFINE_integer(
    "evaluations", 0, "Renders of a search, in place of seconds; 0: none."
)
_CANDIDATES = flags.DEFINE_integer("candidates", 8, "Presets to show.")
_WORKERS = flags.DEFINE_integer(
    "workers", 0, "Rendering workers, 0: one per core."
)


def main() -> None:
    """Runs the command."""
    try:
        from launch.app import server, session
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the application needs {error.name}: pip install -e '.[run,app]'"
        ) from error
    print(devices.describe(), flush=True)
    with server.listen(_PORT.value) as listening:
        run = checkpoints.place(_RUN.value)
        stages = judge.STAGES
        if checkpoints.read_config(run).kind == "proxy":
            stages = tuple(stage for stage in stages if stage != "estimator")
        options = judge.Options(
            stages=stages,
            seconds=_SECONDS.value,
            evaluations=_EVALUATIONS.value,
            candidates=_CANDIDATES.value,
            workers=_WORKERS.value,
        )
        setup = files.open_setup(run, _PLUGIN.value, _PRESETS.value)
        floor = noise.find(run)
        work = session.Session(
            setup,
            options,
            0.0 if floor is None else noise.worst(floor)["a_mean"],
        )
        port = listening.getsockname()[1]
        print(f"open http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
        server.server(work, listening).run([listening])


if __name__ == "__main__":
    cli.run(main)
