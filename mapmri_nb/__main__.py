"""``python -m mapmri_nb`` is the command ``mapmri-nb``."""

from mapmri_nb.use.cli import run

if __name__ == "__main__":  # a worker process that dask spawns imports this file too
    run()
