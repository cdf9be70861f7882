"""Programs in processes of their own, forked from one that has imported the libraries already."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python(*arguments, cwd=None, path=(), timeout=300):
    """Runs what `python -m module ...` or `python -c code` would, without the seconds that the imports take.

    Args:
        arguments: of Python.
        cwd: the working folder of the process; None for this one's.
        path: folders that modules are looked for in first.
        timeout: seconds until the process is killed.

    Returns:
        A `CompletedProcess` with the exit status and both outputs as text.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["veto_pl.cli.build"])  # as for ranks, which share the server
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        given = [str(argument) for argument in arguments], str(cwd or Path.cwd()), [str(p) for p in path]
        process = context.Process(target=_enter, args=(*given, dict(os.environ), *outputs))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{arguments} did not end within {timeout:g} s.")
        return subprocess.CompletedProcess(arguments, process.exitcode, *(file.read_text() for file in outputs))


def _enter(arguments, cwd, path, environment, *outputs):
    for number, file in enumerate(outputs, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:0] = path
    flag, program, *rest = arguments
    sys.argv = [program, *rest]
    if flag == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        assert flag == "-c"
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
