"""Damaged files and random samples, for the tests and for validation/fuzz.py."""

import gzip
import struct
from functools import partial, reduce
from operator import or_

import nibabel as nib
import numpy as np
import phantom
from mapmri_nb.cli import main
from mapmri_nb.io import map_name
from phantom import INDEX_NAMES

import mapmri_nb as mapmri
from mapmri_nb import data

DWI, MASK = "sub-cord_dwi.nii.gz", "sub-cord_mask.nii.gz"
SIDECARS = ("sub-cord_dwi.bval", "sub-cord_dwi.bvec", "sub-cord_dwi.json")
CUT = {"small101d": np.s_[:3, 2:4, 3:5], "catcord": np.s_[24:28, 20:22, :]}
FIELDS = [  # struct format, offset and values of NIfTI-1 fields that cannot be right
    ("<h", 40, -3), ("<h", 40, 9), ("<h", 40, 3), ("<h", 42, -1), ("<h", 42, 0), ("<h", 48, 32000), ("<h", 70, 999),
    ("<4h", 42, *[32767] * 4), ("<2h", 70, 128, 24), ("<2h", 70, 32, 64), ("<f", 108, 1e9), ("<f", 108, np.nan),
    ("<f", 108, -512.0), ("<4s", 344, b"what"), ("<12f", 280, *[0.0] * 12),
    *(("<f", 280 + 4 * k, value) for k in (0, 3, 6) for value in (np.nan, np.inf)),
]  # fmt: skip
KNOWN = reduce(or_, mapmri.Status)  # not a sum: Python 3.10 iterates over NO_FIT as well
WORDS = (b"nan", b"inf", b"-1e9", b"b=0", b"1e400", b"0x10")


def cut(name, folder, dead=False):
    """A cut of a sample with its sidecars; its path. `dead`: the first voxel has no signal."""
    folder.mkdir(parents=True, exist_ok=True)
    source = data.sample_dwi(name)
    for path in source.parent.glob("sub-*"):
        if path.name.endswith(".nii.gz"):
            image = nib.load(path)
            values = np.array(image.dataobj[CUT[name]])
            if dead:
                values[0, 0] = values.ndim < 4
            nib.save(nib.Nifti1Image(values, image.affine), folder / path.name)
        else:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder / source.name


# ---- damaged files: each by (content, generator, number of the damage)


def patched(old, rng, k):
    """A header with a field that cannot be right."""
    content, (layout, offset, *values) = bytearray(gzip.decompress(old)), FIELDS[k % len(FIELDS)]
    struct.pack_into(layout, content, offset, *values)
    return gzip.compress(bytes(content))


def shortened(old, rng, k=0):
    return old[: rng.integers(0, int(0.9 * len(old)))]


def flipped(old, rng, k):
    at = 50 + k % 400
    return old[:at] + bytes([old[at] ^ 1 << k % 8]) + old[at + 1 :]


def reworded(old, rng, k):
    words = old.split(b" ")
    words[rng.integers(3, len(words) - 3)] = WORDS[rng.integers(len(WORDS))]
    return b" ".join(words)


def rewritten(old, rng, k, stop=None, letters=bytes(range(256))):
    """One to four of the first bytes, each another of the letters."""
    content = bytearray(old)
    for place in rng.integers(0, len(content[:stop]), rng.integers(1, 5)):
        content[place] = letters[rng.integers(len(letters))]
    return bytes(content)


# kind -> (which files in turn, how often in the tests, their new content); no fit comes of them,
# but by a b0's direction -1e9
DAMAGE = {
    "series cut short": ([DWI], 10, shortened),
    "series with a flipped bit": ([DWI], 8, flipped),
    "random bytes": ([DWI], 4, lambda old, rng, k: rng.bytes(3000)),
    "random bytes after gzip's magic": ([DWI], 4, lambda old, rng, k: b"\x1f\x8b\x08\0" + rng.bytes(3000)),
    "random bytes, compressed": ([DWI], 4, lambda old, rng, k: gzip.compress(rng.bytes(3000))),
    "text": ([DWI, *SIDECARS], 4, lambda old, rng, k: b"Dear all,\n[1, 2]\n"),
    "wrong header field": ([DWI], len(FIELDS), patched),
    "random bytes as sidecar": (SIDECARS, 9, lambda old, rng, k: rng.bytes(200)),
    "sidecar cut short": (SIDECARS, 9, shortened),
    "sidecar with a wrong word": (SIDECARS[:2], 6, reworded),
}  # fmt: skip
ANY = {  # of these a fit may come, since a changed digit is a digit
    "header with other bytes": (
        [DWI, MASK], 12, lambda old, rng, k: gzip.compress(rewritten(gzip.decompress(old), rng, k, 352))),
    "file with other bytes": ([DWI, MASK], 12, rewritten),
    "sidecar with other bytes": (SIDECARS, 12, rewritten),
    "sidecar with other digits": (SIDECARS, 12, partial(rewritten, letters=b"0123456789.-e \n")),
}  # fmt: skip


def outcome(capture, out, *words):
    """What a command that writes into the folder `out` did, and its lines if they are not as they
    should be: "refused" (in one line, with nothing left), "done", "traceback", "other".
    """
    try:
        code = main([*map(str, words), "--out", str(out), "--quiet"])
    except Exception as error:  # what would be a traceback on the terminal
        return "traceback", repr(error)
    lines = capture().strip().splitlines()
    if (code, len(lines), out.exists()) == (1, 1, False) and lines[0].startswith(
        "mapmri-nb: error: "
    ):
        return "refused", ""
    return ("done", "") if code == 0 else ("other", f"{code} {lines}")


def unaccounted(out, prefix="sub-cord"):
    """Voxels of written maps whose value and status do not go together."""

    def read(label):
        return np.asarray(nib.load(out / map_name(prefix, label)).dataobj)

    status = read("status").astype(np.int64)
    none = status & (mapmri.Status.NO_FIT | mapmri.Status.OUTSIDE) != 0
    unknown = status & ~KNOWN != 0
    return int((unknown | (np.isnan(read("rtop")) != none)).sum())


# ---- random samples

MODES = {
    f"{mode}, {basis}": options | {"basis": basis}
    for mode, options in phantom.MODES.items()
    for basis in phantom.BASES
}
ODD = (np.nan, np.inf, -np.inf, 5e-324, 1e-310, 1e308, -1e308, 0.0, -0.0)
MAPS = [*INDEX_NAMES, "pa", "pa_dti", "rmse", "r2"]
RESIDUALS = ("rmse", "r2")  # not finite also where the sum of squares leaves float64


def fuzzed(clean, rng, each=36):
    """Between the clean rows: random bytes of four types, and clean voxels with odd samples."""
    n, rows = clean.shape[1], []
    for kind in (np.float64, np.float32, np.float16, np.int16):
        rows += [np.frombuffer(rng.bytes(8 * n), kind)[:n] for _ in range(each)]
    for k in range(each):
        odd = rng.random(n) < rng.random()
        rows.append(np.where(odd, rng.choice(ODD, n), clean[k % len(clean)]))
    with np.errstate(invalid="ignore"):  # of the casts
        rows = [row.astype(np.float64) for row in rows]
    where = np.linspace(0, len(rows), len(clean)).astype(int)
    good = where + np.arange(len(clean))
    return np.insert(np.array(rows), where, clean, axis=0), good


def random_samples(mode, each=36, seed=0):
    """A mode's fit of `fuzzed` voxels, their samples, the clean rows and their fit alone."""
    scheme = phantom.small_scheme()
    clean = phantom.signals(20, *scheme, seed=4)
    y, good = fuzzed(clean, np.random.default_rng(seed), each)
    model = mapmri.MapmriModel(phantom.table(*scheme), 4, **MODES[mode])
    return model.fit(y), y, good, model.fit(clean)


def wrong_voxels(fit, y, good, alone):
    """Rows (V,) that are not as they must be, and those without a fit: a known status; NaN in every
    map where it says so and finite numbers elsewhere; clean voxels bit for bit as without
    neighbours.
    """
    none = (fit.status & mapmri.Status.NO_FIT) != 0
    wrong, rows = (fit.status & ~KNOWN) != 0, fit.rows()
    wrong[good] |= none[good]
    for name, own in alone.rows().items():
        same = (rows[name][good] == own) | (np.isnan(own) & np.isnan(rows[name][good]))
        wrong[good] |= ~same.reshape(len(good), -1).all(1)
    for name in ("coef", "mu", "R", "S0"):
        values = getattr(fit, name).reshape(len(none), -1)
        wrong |= ~none & ~np.isfinite(values).all(1)
        wrong |= none & ~np.isnan(values).all(1) & (name in ("coef", "S0"))
    with np.errstate(over="ignore"):
        beyond = ~np.isfinite((np.where(np.isfinite(y), y, 0.0) ** 2).sum(1))
    for name in MAPS:
        if not (fit.isotropic and name in ("ng_par", "ng_perp")):
            values = getattr(fit, name)()
            wrong |= none & ~np.isnan(values)
            wrong |= ~none & ~np.isfinite(values) & ~(beyond & (name in RESIDUALS))
    return wrong, none
