"""
Signal or deviation
===================

The Laplacian of the signal raises RTOP; the Laplacian of the deviation leaves Gaussians alone.
"""

from mapmri_nb import GradientTable, MapmriModel, io
from mapmri_nb.data import sample_dwi
from mapmri_nb.use import plot

dwi = sample_dwi("catcord")
image = io.load_dwi(dwi)
mask = io.load_mask(str(dwi).replace("_dwi.", "_mask."), image.data.shape[:3], image.affine)
table = GradientTable.from_bids(dwi)

fits = [
    MapmriModel(table, 6, laplacian_of=kind).fit(image.data, mask)
    for kind in ("signal", "deviation")
]
figure = plot.compare_maps(fits, ["rtop"], fit_labels=["signal", "deviation"], affine=image.affine)
