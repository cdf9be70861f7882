"""The process that has the pretended GPU. Torch must know it before any backward pass, so no other test runs there."""

import importlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import torch

from veto_pl.testing.pretended_gpu import pretended_gpu


@cache
def device_process():
    """One process for all tests of a worker, forked from one that has imported the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["veto_pl.cli.build"])  # as for ranks, which share the server
    return ProcessPoolExecutor(1, mp_context=context, initializer=begin)


def begin():
    torch.set_num_threads(1)
    pretended_gpu()


def call(module, function, arguments):
    getattr(importlib.import_module(module), function)(**arguments)
