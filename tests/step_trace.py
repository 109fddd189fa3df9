"""Which files of the project run between two RL steps of a smoke run that saves at every step: `python tests/step_trace.py`.

A file counts where one of its functions is called, from the end of RL step 1 to the end of RL step 2.
"""

import runpy
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parents[1]
CORE = ("ngrpo/loop.py", "ngrpo/training/", "ngrpo/rollout/", "ngrpo/exploration/", "ngrpo/algorithm/")


def traced() -> dict[str, int]:
    """Path -> lines of every file of the project that runs."""
    from ngrpo.rundir import checkpoints

    seen: set[str] = set()
    save = checkpoints.save

    def watch(frame, event: str, argument: object) -> None:
        if event == "call":
            seen.add(frame.f_code.co_filename)

    def saved(directory, step: int, *rest):
        result = save(directory, step, *rest)
        if step == 1:
            sys.setprofile(watch)
        elif step == 2:
            sys.setprofile(None)
        return result

    checkpoints.save = saved  # the last thing that a step does
    with TemporaryDirectory() as folder:
        sys.argv = ["train.py", "trainer=smoke", "steps=3", "evaluation.before=false", f"hydra.run.dir={folder}/run"]
        runpy.run_path(str(REPOSITORY / "train.py"), run_name="__main__")
    own = [Path(name) for name in seen if name.startswith(str(REPOSITORY)) and ".venv" not in Path(name).parts]
    own = [path for path in own if path != Path(__file__).resolve()]
    return {str(path.relative_to(REPOSITORY)): len(path.read_text("utf-8").splitlines()) for path in sorted(own)}


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    files = traced()
    for name, lines in files.items():
        print(f"{lines:6}  {name}")
    core = [name for name in files if name.startswith(CORE)]
    print(f"{len(files)} files, {sum(files.values())} lines; {len(core)} of the files in {', '.join(CORE)}")
