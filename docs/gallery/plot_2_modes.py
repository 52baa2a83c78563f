"""
Three modes
===========

The same slice without positivity, with positivity on a grid, and everywhere.
"""

from mapmri_nb import GradientTable, MapmriModel, io
from mapmri_nb.data import sample_dwi
from mapmri_nb.use import plot

dwi = sample_dwi("catcord")
image = io.load_dwi(dwi)
mask = io.load_mask(str(dwi).replace("_dwi.", "_mask."), image.data.shape[:3], image.affine)
table = GradientTable.from_bids(dwi)

options = {"MAPL": None, "CMAPL": "grid", "MAPL+": "global"}
fits = [MapmriModel(table, 6, positivity=p).fit(image.data, mask) for p in options.values()]
figure = plot.compare_maps(fits, ["rtop", "ng"], fit_labels=list(options), affine=image.affine)
