"""
The propagator
==============

Contours of the propagator of one voxel in the plane of its two main axes.
"""

from mapmri_nb import GradientTable, MapmriModel, io
from mapmri_nb.data import sample_dwi
from mapmri_nb.use import plot

dwi = sample_dwi("small101d")
image = io.load_dwi(dwi)
mask = io.load_mask(str(dwi).replace("_dwi.", "_mask."), image.data.shape[:3], image.affine)
table = GradientTable.from_bids(dwi)

fit = MapmriModel(table, radial_order=6, positivity="grid").fit(image.data, mask)
voxel = tuple(int(i) for i in list(zip(*mask.nonzero(), strict=True))[100])
figure = plot.propagator(fit, voxel)
