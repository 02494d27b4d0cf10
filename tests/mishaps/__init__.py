"""Everything that goes wrong around a compression, as data: what is broken, what is asked, what must come of it.

    a fresh model, an empty folder ──make──▶ something is wrong ──ask──▶ ends, says, leaves  ──▶ the laws of place.py

One module a kind; ``tools/mishaps.py`` carries all of them out and writes the table, ``tests/test_mishaps.py`` holds
every one of them to what it says here.
"""

from tests.mishaps import arguments, calls, configs, disks, distilling, files, models, names, results, stops
from tests.mishaps.place import Mishap

MISHAPS: tuple[Mishap, ...] = (
    *files.MISHAPS,
    *names.MISHAPS,
    *disks.MISHAPS,
    *configs.MISHAPS,
    *models.MISHAPS,
    *arguments.MISHAPS,
    *calls.MISHAPS,
    *results.MISHAPS,
    *distilling.MISHAPS,
    *stops.MISHAPS,
)
