"""Output that cannot be written ends no command."""

import os
import sys
from contextlib import redirect_stdout

import pytest
from rich.console import Console

from veto_pl.cli.streams import LastingStream, lasting_output
from veto_pl.commands.main import main


@pytest.fixture
def broken():
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    file = os.fdopen(writing, "w")
    yield file
    file.close()  # what it still holds goes nowhere, too


def test_a_broken_pipe_swallows_what_is_written(broken):
    stream = LastingStream(broken)
    assert stream.write("a" * 100_000) == 100_000
    stream.writelines(["b", "c"])
    stream.flush()
    Console(file=stream).print("rich ends a process whose pipe is broken")
    assert os.write(broken.fileno(), b"a child process would, too") == 26
    assert stream.isatty() is False


def test_a_full_disk_is_tried_again(tmp_path):
    class Refusing:
        refuses = True
        text = ""

        def write(self, text):
            if self.refuses:
                raise OSError(28, "No space left on device")
            self.text += text

    refusing = Refusing()
    stream = LastingStream(refusing)
    stream.write("lost")
    refusing.refuses = False
    stream.write("kept")
    assert refusing.text == "kept"


def test_what_is_no_refusal_is_raised(broken):
    with pytest.raises(TypeError):
        LastingStream(broken).write(3)


def test_the_streams_are_given_back():
    before = sys.stdout, sys.stderr
    with lasting_output():
        assert isinstance(sys.stdout, LastingStream)
    assert (sys.stdout, sys.stderr) == before


def test_a_command_without_a_reader_ends_well(broken):
    """`veto-pl list | true`."""
    with redirect_stdout(broken):
        main(["list"])
