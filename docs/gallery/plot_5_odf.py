"""
ODFs
====

ODFs of human brain, coloured by direction, by the isotropic basis.
"""

from mapmri_nb import GradientTable, MapmriModel, io
from mapmri_nb.data import sample_dwi
from mapmri_nb.use import plot

dwi = sample_dwi("small101d")
image = io.load_dwi(dwi)
mask = io.load_mask(str(dwi).replace("_dwi.", "_mask."), image.data.shape[:3], image.affine)
table = GradientTable.from_bids(dwi)

fit = MapmriModel(table, radial_order=6, basis="isotropic").fit(image.data, mask)
figure = plot.odf_slice(fit, affine=image.affine)
