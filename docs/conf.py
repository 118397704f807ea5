"""Configuration of the documentation; built with warnings as errors."""

import importlib.metadata

project = "keras_scaled_l2"
copyright = "the keras_scaled_l2 developers"
release = importlib.metadata.version("keras_scaled_l2")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "keras_scaled_l2"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
exclude_patterns = ["_build"]
