"""``python -m mapmri_nb`` is the command ``mapmri-nb``."""

from mapmri_nb.cli import run

run()
