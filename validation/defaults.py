"""One series under the defaults of 0.1 (preset="paper") and those of today: median of each index,
small101d.

    python validation/defaults.py
"""

import numpy as np
from common import load_sample, mapmri

MODES = {"MAPL": {}, "CMAPL": {"positivity": "grid"}}
NAMES = ("rtop_root", "rtap_root", "rtpp", "msd", "ng", "pa")  # cube and square root: 1/mm


def main():
    """Print the table as Markdown."""
    sample, columns = load_sample("small101d"), {}
    for mode, options in MODES.items():
        for title, preset in (("0.1", "paper"), ("today", None)):
            model = mapmri.MapmriModel(sample.gtab, 6, preset=preset, **options)
            fit = model.fit(sample.y)
            columns[f"{mode}, {title}"] = [np.nanmedian(fit.index_rows(name)) for name in NAMES]
            columns[f"{mode}, {title}"].append(np.nanmedian(fit.S0))
    print("| median | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for k, name in enumerate((*NAMES, "S0")):
        print(f"| {name} | " + " | ".join(f"{column[k]:.4g}" for column in columns.values()) + " |")


if __name__ == "__main__":
    main()
