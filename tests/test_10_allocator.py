"""What glibc keeps of freed memory, counted in page faults of processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from ovrs.engine.allocator import keep_freed_memory
asked = "keep" in sys.argv and keep_freed_memory()
np.ones(10_000_000).sum()  # 80 MB: used once, freed
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(10_000_000).sum()
print(asked, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def faults(*arguments, **extra):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    command, small_pages = [sys.executable, "-c", FAULTS, *arguments], {"NUMPY_MADVISE_HUGEPAGE": "0"}
    environment = clean | small_pages | extra
    asked, count = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()
    return asked == "True", int(count)


def test_freed_arrays_are_used_again():
    asked, kept = faults("keep")
    _, by_itself = faults()
    assert asked
    assert by_itself > 20_000
    assert kept < by_itself / 10


def test_the_environment_has_the_last_word():
    asked, count = faults("keep", MALLOC_MMAP_THRESHOLD_="131072")
    assert not asked
    assert count > 20_000
