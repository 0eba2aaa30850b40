"""`python -m course_lib.assets [name …]` fetches what is missing; `--verify` reads every byte; `--list` says
what there is."""

import argparse
import sys

from course_lib.assets import CATALOG, AssetError, damaged, data_folder, fetch, missing
from course_lib.assets.progress import shown


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m course_lib.assets", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"one of {', '.join(CATALOG)} (default: all)"
    )
    parser.add_argument("--verify", action="store_true", help="only check the sha256 of what is there")
    parser.add_argument("--list", action="store_true", help="only list the assets")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in CATALOG]:
        parser.error(f"no asset is called {unknown[0]!r}: there are {', '.join(CATALOG)}")

    root, failed = data_folder(), False
    for name in options.names or CATALOG:
        asset = CATALOG[name]
        gone, wrong = missing(asset, root), [] if options.list else damaged(asset, root)
        state = "missing" if gone else "damaged" if wrong else "here" if options.list else "verified"
        if state in ("missing", "damaged") and not (options.list or options.verify):
            try:
                with shown(asset) as progress:
                    fetch(asset, root, progress)
                state = "fetched"
            except AssetError as problem:
                print(f"{name}: {problem}", file=sys.stderr)
                state = "failed"
        failed |= state in ("missing", "damaged", "failed") and not options.list
        print(f"{name:13} {state:9} {root / asset.location}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
