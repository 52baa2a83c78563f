"""
All maps at once
================

The overview that the demo writes.
"""

from mapmri_nb import GradientTable, MapmriModel, io
from mapmri_nb.data import sample_dwi
from mapmri_nb.use import plot

dwi = sample_dwi("small101d")
image = io.load_dwi(dwi)
mask = io.load_mask(str(dwi).replace("_dwi.", "_mask."), image.data.shape[:3], image.affine)
table = GradientTable.from_bids(dwi)

fit = MapmriModel(table, radial_order=6).fit(image.data, mask)
figure = plot.overview(fit, affine=image.affine, title="small101d")
