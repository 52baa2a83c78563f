"""Sphinx: pages in Markdown, API from docstrings, a gallery that is drawn when the pages are built."""

import warnings

from sphinx_gallery.scrapers import figure_rst

import mapmri_nb

project = "mapmri_nb"
author = "mapmri_nb developers"
copyright = author
version = release = mapmri_nb.__version__
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery"]
html_theme = "alabaster"
html_theme_options = {"description": "MAP-MRI in Numba", "page_width": "72rem"}
html_static_path = ["_static"]
html_css_files = ["pages.css"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
numpydoc_show_class_members = False
autodoc_member_order = "bysource"


def figures(block, block_vars, gallery_conf):
    """Save the name `figure` of an example: the library draws without pyplot."""
    figure = block_vars["example_globals"].pop("figure", None)
    if figure is None:
        return ""
    path = next(block_vars["image_path_iterator"])
    figure.savefig(path)
    return figure_rst([path], gallery_conf["src_dir"])


sphinx_gallery_conf = {
    "image_scrapers": (figures,),
    "plot_gallery": True,
    "abort_on_example_error": True,
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "download_all_examples": False,
    "show_memory": False,
    "remove_config_comments": True,
    "matplotlib_animations": False,
    "min_reported_time": 1e9,
}
suppress_warnings = ["config.cache"]
warnings.filterwarnings("ignore", message=".*FigureCanvasAgg is non-interactive.*")
