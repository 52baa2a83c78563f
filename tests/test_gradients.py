"""Gradient tables: what they compute, what they read, what they refuse and with which words."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import phantom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from shell import refused

from mapmri_nb.gradients import FRAMES, GradientTable, same_directions, to_scanner, turned
from mapmri_nb.readers import undirected, volumes

TIMES = {"big_delta": 0.0431, "small_delta": 0.0106}
RNG = np.random.default_rng(7)
BVALS = np.array([0.0, 5.0, 990.0, 1000.0, 1010.0, 2995.0, 3005.0])
BVECS = RNG.normal(size=(7, 3))
BVECS /= np.linalg.norm(BVECS, axis=1)[:, None]
BVECS[0] = 0


def table(**changes):
    return GradientTable(**{"bvals": BVALS, "bvecs": BVECS, **TIMES, **changes})


def write_fsl(folder, stem="dwi", bvals=BVALS, bvecs=BVECS, columns=False):
    np.savetxt(folder / f"{stem}.bval", bvals[None], fmt="%.17g")
    np.savetxt(folder / f"{stem}.bvec", bvecs if columns else bvecs.T, fmt="%.17g")
    return folder / f"{stem}.bval", folder / f"{stem}.bvec"


@pytest.mark.nojit
@pytest.mark.parametrize("big", [0.0431, 0.0431 * (1 + 0.01 * np.linspace(-1, 1, 7))], ids=np.shape)
def test_q_follows_from_b_and_the_tau_of_each_volume(big):
    gtab = table(big_delta=big)
    assert_allclose(gtab.taus, np.full(7, big) - 0.0106 / 3, rtol=1e-15)
    assert gtab.tau == pytest.approx(gtab.taus.mean(), rel=1e-15)
    assert_allclose(4 * np.pi**2 * gtab.qvals**2 * gtab.taus, BVALS, rtol=1e-14)
    assert_allclose(np.linalg.norm(gtab.qvecs, axis=1)[1:], gtab.qvals[1:], rtol=1e-14)
    assert gtab.b0s_mask.tolist() == [True, True, False, False, False, False, False]
    assert (len(gtab), gtab.frame) == (7, "image")
    assert_array_equal(gtab.big_delta, big)
    assert gtab.small_delta == 0.0106
    assert [(round(b), n) for b, n in gtab.shells()] == [(1000, 3), (3000, 2)]
    assert "3 x 1000" in repr(gtab)


def test_mixed_diffusion_times_are_taken_apart():
    big = np.where(np.arange(7) % 2, 0.02, 0.06)
    gtab = table(big_delta=big)
    refused(r"big_delta .* 0\.01647 to 0\.05647", getattr, gtab, "tau")
    assert gtab[big == 0.06].tau == pytest.approx(0.06 - 0.0106 / 3, rel=1e-15)
    # A spread of 4.88 % of the mean is allowed, 5.2 % not.
    below, above = (GradientTable([0, 0], np.zeros((2, 3)), tau=[0.1, t]) for t in (0.105, 0.1053))
    assert below.tau == pytest.approx(0.1025)
    refused("one fit needs one", getattr, above, "tau")


def again(gtab):
    """The table by way of JSON."""
    return GradientTable.from_dict(json.loads(json.dumps(gtab.to_dict())))


def test_dictionary_is_bit_exact():
    bvecs = BVECS * (1 + 0.009 * RNG.uniform(-1, 1, size=(7, 1)))
    alone = table(big_delta=None, small_delta=None, tau=0.04)
    assert (alone.tau, alone.big_delta) == (0.04, None)
    more = table(big_delta=np.full(7, 0.05), b0_threshold=3, frame="scanner")
    for gtab in (alone, table(bvecs=bvecs), more):
        assert gtab == again(gtab)


def test_subsets():
    big = 0.0431 * (1 + 0.01 * np.linspace(-1, 1, 7))
    more = {"b0_threshold": 3, "frame": "scanner"}
    for select in (slice(1, 6, 2), [0, 3, 3], np.array([6, 0]), BVALS > 50, (BVALS > 50).tolist()):
        keep = np.arange(7)[select]
        part = {"bvals": BVALS[keep], "bvecs": BVECS[keep], "big_delta": big[keep]}
        assert table(big_delta=big, **more)[select] == table(**part, **more)
    assert [float(one.bvals[0]) for one in table()] == BVALS.tolist()
    assert len(table()[-1]) == 1
    refused("7", table().__getitem__, 7, error=IndexError)
    refused("bvals must be a list", table().__getitem__, slice(7, None))


def test_directions_are_normalised_in_either_layout():
    """In arrays of the table's own."""
    bvals, bvecs = BVALS.copy(), (BVECS * 1.008).T
    gtab = GradientTable(bvals, bvecs, **TIMES)
    assert_allclose(gtab.bvecs, BVECS, atol=1e-15)
    assert gtab.bvecs.flags.c_contiguous
    gtab.bvals[3] = 7
    assert_array_equal(bvecs, (BVECS * 1.008).T)
    assert_array_equal(bvals, BVALS)
    vectors = np.eye(3)[[1, 2, 0]]  # three volumes: an array is taken as rows
    assert np.array_equal(GradientTable([1000] * 3, vectors, **TIMES).bvecs, vectors)


@pytest.mark.parametrize("junk", [np.nan, np.inf, 0.5, 7.0, 1e300])
def test_a_volume_at_b0_needs_no_direction(junk):
    """What is there and is no direction like the others' is not used."""
    bvecs = BVECS.copy()
    bvecs[:2, 0], bvecs[:2, 1:] = junk, 0
    assert table(bvecs=bvecs) == table(bvecs=changed(BVECS, 1, 0))
    for bad in (np.nan, np.inf):
        words = r"bvecs\[4, 0\] = .*: volume 4 at b = 1010 needs a d"
        refused(words, table, bvecs=changed(bvecs, 4, bad))


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        (np.full(7, 1.0208), "all 1.021"),
        (np.full(7, 0.5), "all 0.5"),
        (np.sqrt(BVALS / 4000), "go with sqrt(b)"),
        (np.round(np.sqrt(BVALS / 3000), 2), "go with sqrt(b)"),
    ],
)
def test_lengths_that_mean_nothing_are_normalised_and_it_is_said(tmp_path, caplog, lengths, words):
    """By the constructor and by the three readers."""
    bvecs, read = BVECS * lengths[:, None], GradientTable
    files = write_fsl(tmp_path, bvecs=bvecs)
    np.savetxt(tmp_path / "dwi.b", np.c_[bvecs, BVALS])
    with caplog.at_level(logging.INFO, "mapmri_nb"):
        tables = [table(bvecs=bvecs), read.from_fsl(*files, **TIMES)]
        tables += [read.from_bids(tmp_path / "dwi.nii.gz", **TIMES)]
        tables += [read.from_mrtrix(tmp_path / "dwi.b", frame="image", **TIMES)]
    assert caplog.text.count(words) == 4
    for gtab in tables:
        assert_allclose(gtab.bvecs[2:], BVECS[2:], atol=1e-15)
        assert_array_equal(gtab.bvals, BVALS)


def test_lengths_with_two_readings():
    nominal, lengths = np.r_[0, 0, np.full(5, 3000.0)], np.r_[0, 0.1, 0.577, 0.5, 0.9, 1, 1]
    bvecs = BVECS * lengths[:, None]
    words = r"bvecs\[2\] = .* b = 3000 .*'normalise'.* = 998\.8.*'amp"
    refused(words, table, bvals=nominal, bvecs=bvecs)
    one = table(bvals=nominal, bvecs=bvecs, bvec_scaling="normalise")
    assert_allclose(one.bvecs, table(bvals=nominal).bvecs, atol=1e-15)
    assert_array_equal(one.bvals, nominal)
    two = table(bvals=np.full(7, 3000.0), bvecs=bvecs, bvec_scaling="amplitude")
    assert_allclose(two.bvals, 3000 * lengths**2)
    assert two.b0s_mask.tolist() == [True, True] + [False] * 5
    assert_allclose(two.bvecs[2:], BVECS[2:], atol=1e-15)
    assert two == again(two)
    refused(r"bvec_scaling must be one of .*, not 'guess'", table, bvec_scaling="guess")


@pytest.mark.parametrize("gap", [None, np.nan, 0])
def test_times_with_gaps_at_b0_and_lists_of_one(gap):
    big, small = [gap, gap, *[0.0431] * 5], [gap, 0.0106, *[0.0106] * 5]
    assert_allclose(table(big_delta=big, small_delta=small).taus, table().taus, rtol=1e-15)
    assert table(big_delta=[0.0431], small_delta=np.array([0.0106])) == table()
    bad = changed(np.array(big, float), 3, np.nan if gap is None else gap)
    refused(r"big_delta\[3\] = ", table, big_delta=bad)


BOTH = {"BigDelta": 0.0431, "SmallDelta": 0.0106}


@pytest.mark.parametrize(
    ("sidecar", "given", "expected"),
    [
        (BOTH, {}, "read as s"),
        ({"LargeDelta": 43.1, "SmallDelta": 10.6}, {}, "read as ms"),
        ({"BigDelta": 43.1, "LargeDelta": 43.1, "SmallDelta": 10.6}, {}, "read as ms"),
        ({"LargeDelta": [43.1] * 7, "SmallDelta": [10.6]}, {}, "read as ms"),
        *(({"LargeDelta": [g, g, *[43.1] * 5], "SmallDelta": 10.6}, {}, "read as ms")
          for g in (None, np.nan, 0)),
        ({"LargeDelta": 0.0431}, {"small_delta": 0.0106}, "read as s"),
        ({"LargeDelta": 43.1}, {"small_delta": 0.0106}, "read as ms"),
        ({"SmallDelta": 0.0106}, {"big_delta": 0.0431}, "read as s"),
        ({"SmallDelta": 10.6}, {"big_delta": 0.0431}, "read as ms"),
        ({"SmallDelta": 0.01}, TIMES, ""),
        (None, {}, "! big_delta is missing"),
        ({"LargeDelta": 0.04}, {}, "! no pair .* without small_delta"),
        ({"SmallDelta": 0.01}, {}, "! no pair of BigDelta .* without big_delta"),
        (BOTH | {"LargeDelta": 0.05}, {}, "! but LargeDelta = 0.05"),
        (BOTH | {"BigDelta": "long"}, {}, "! BigDelta must be numbers"),
        (BOTH | {"BigDelta": True}, {}, "! BigDelta must be numbers, not True"),
        ([0.04, 0.01], {}, "! holds a list, not names and values"),
        # microseconds: neither of the two
        ({"BigDelta": 43100, "SmallDelta": 10600}, {}, r"! nor in ms. In us\? Then it is 0\.0431"),
    ],
)  # fmt: skip
def test_deltas_of_a_sidecar_are_never_guessed(tmp_path, caplog, sidecar, given, expected):
    """Their unit is said; a refusal, here after "! ", says all by itself."""
    write_fsl(tmp_path)
    if sidecar is not None:
        (tmp_path / "dwi.json").write_text(json.dumps(sidecar))
    with caplog.at_level(logging.INFO, "mapmri_nb"):
        if expected.startswith("!"):
            refused(expected[2:], GradientTable.from_bids, tmp_path / "dwi.nii.gz", **given)
            assert not caplog.text
        else:
            gtab = GradientTable.from_bids(tmp_path / "dwi.nii.gz", **given)
            assert_allclose(gtab.taus, table().taus, rtol=1e-15)
            assert_array_equal(gtab.qvecs, table().qvecs)
            assert expected in caplog.text


def test_a_sidecar_named_and_times_beside_it(tmp_path):
    """Short pulses are judged by the other time."""
    write_fsl(tmp_path)
    side, read = tmp_path / "dwi.json", GradientTable.from_bids
    side.write_text('{"EchoTime": 0.09, "BigDelta": 20, "SmallDelta": 0.9}')
    assert (read(side).big_delta, read(side).small_delta) == (0.02, 0.0009)
    assert read(side, tau=0.03).tau == 0.03
    side.write_text('{"BigDelta": 0.04,')
    refused(r"dwi\.json is not a JSON sidecar", read, side)


def test_inherited_files(tmp_path):
    """From the folder of the data set down; a nearer sidecar goes before a farther one."""
    folder = tmp_path / "sub-1" / "ses-2" / "dwi"
    folder.mkdir(parents=True)
    write_fsl(tmp_path, "dwi")
    write_fsl(tmp_path, "acq-other_dwi", bvals=BVALS * 2)
    series = folder / "sub-1_ses-2_acq-a_run-1_dwi.nii.gz"
    (tmp_path / "dwi.json").write_text('{"BigDelta": 0.06, "SmallDelta": 0.0106}')
    (tmp_path / "sub-1" / "sub-1_acq-a_dwi.json").write_text('{"LargeDelta": 0.0431}')
    (tmp_path / "sub-1" / "sub-2_dwi.json").write_text('{"LargeDelta": 0.08}')
    assert GradientTable.from_bids(series) == table()
    write_fsl(folder, "sub-1_acq-a_dwi", bvals=BVALS + 1)
    assert GradientTable.from_bids(series).bvals[0] == 1
    write_fsl(folder, "sub-1_run-1_dwi")
    refused(r"run-1_dwi.bval both go with .*: name one with bval", GradientTable.from_bids, series)
    write_fsl(folder, "sub-1_ses-2_acq-a_run-1_dwi", bvals=BVALS + 2)
    assert GradientTable.from_bids(series).bvals[0] == 2


def test_bvals_and_bvecs_beside_the_data(tmp_path):
    for path in write_fsl(tmp_path):
        path.rename(tmp_path / f"{path.suffix[1:]}s")
    assert GradientTable.from_bids(tmp_path / "data.nii.gz", **TIMES) == table()
    write_fsl(tmp_path, "data", bvals=BVALS + 1)
    assert GradientTable.from_bids(tmp_path / "data.nii.gz", **TIMES).bvals[0] == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_encodings(tmp_path, encoding):
    bval, bvec = write_fsl(tmp_path)
    for path in (bval, bvec):
        path.write_bytes(("# Hôpital\r\n" + path.read_text()).encode(encoding))
    sidecar = {"InstitutionName": "Hôpital", "BigDelta": 0.0431, "SmallDelta": 0.0106}
    text = json.dumps(sidecar, ensure_ascii=False)
    (tmp_path / "dwi.json").write_bytes(text.encode(encoding))
    assert GradientTable.from_bids(tmp_path / "dwi.nii") == table()


def test_tables_of_four(tmp_path):
    path, rows = tmp_path / "dwi.b", np.c_[BVECS, BVALS]
    lines = (",".join(map(repr, row)) for row in rows.tolist())
    path.write_text("# command_history: none\n" + "\n".join(lines))
    assert GradientTable.from_mrtrix(path, **TIMES) == table(frame="scanner")
    np.savetxt(path, rows.T)
    assert GradientTable.from_mrtrix(path, **TIMES) == table(frame="scanner")
    bval, _ = write_fsl(tmp_path)
    refused(r"dwi\.b has four rows, x y z b", GradientTable.from_fsl, bval, path, **TIMES)
    np.savetxt(path, np.roll(rows, 1, axis=1))
    refused("b is in the first column, as in DSI Studio", GradientTable.from_mrtrix, path, **TIMES)
    path.write_text("1 0 0\n0 1 0\n")
    refused(r"4 columns \(x y z b\), this one 3", GradientTable.from_mrtrix, path, **TIMES)


def test_trace_volume(tmp_path):
    """No direction at b = 3000: refused with its likely cause, unless it is left out."""
    bvals, bvecs = np.r_[BVALS, 3000], np.r_[BVECS, np.zeros((1, 3))]
    words = r"bvecs\[7\].* b = 3000 .*trace or ADC.*\(volumes="
    refused(words, GradientTable, bvals, bvecs, **TIMES)
    files = write_fsl(tmp_path, bvals=bvals, bvecs=bvecs)
    assert GradientTable.from_fsl(*files, volumes="0:7", **TIMES) == table()
    assert undirected(bvals, bvecs).tolist() == [False] * 7 + [True]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("b<=3000", [0, 1, 2, 3, 4, 5]),
        ("b<50", [0, 1]),
        ("0:3,6", [0, 1, 2, 6]),
        ("b>=50, b<2000", [2, 3, 4]),
        ("-1", [6]),
        ("-7", [0]),
        ("::3", [0, 3, 6]),
        ("1:,b==2995", [5]),
        ([6, 0], [0, 6]),
        (BVALS > 50, [2, 3, 4, 5, 6]),
        ("a file of 0 1\n4", [0, 1, 4]),
        ("a file of 0 7", r"7 in .* one of 7"),
        ("a file of 1 1 0 1", "twice"),
        ("a file of 1.5", r"1\.5"),
        *((choice, "") for choice in ("all", "b~3", "9", "b>1e5", "", "nowhere.txt", "b<=x")),
    ],
)
def test_choice_of_volumes(tmp_path, choice, expected):
    """Or an error where it names none."""
    names, path = [choice], tmp_path / "keep.txt"
    if str(choice).startswith("a file of "):
        path.write_text(choice.removeprefix("a file of "))
        names = [path, str(path)]
    for name in names:
        if isinstance(expected, str):
            refused(f"volumes: .*{expected}", volumes, name, BVALS)
        else:
            assert volumes(name, BVALS).tolist() == expected


@pytest.mark.parametrize("content", [b"x" * 5000, b"1 2\n" + b"1 2 3\n" * 900, b"\x93" * 9000])
def test_messages_stay_short_whatever_a_file_holds(tmp_path, content):
    bval, bvec = write_fsl(tmp_path, "dwi")
    good, side = write_fsl(tmp_path, "dwi2")[1], tmp_path / "other.json"
    bvec.write_bytes(content)
    side.write_bytes(b'{"BigDelta": ["' + b"x" * 5000 + b'"], "SmallDelta": 1}')
    fsl, mrtrix = GradientTable.from_fsl, GradientTable.from_mrtrix
    for error in (
        refused("not|holds", fsl, bval, bvec, **TIMES),
        refused("not|holds", mrtrix, bvec, **TIMES),
        refused("not|holds", fsl, bval, bval, json=bvec),
        refused("not|holds", fsl, bval, good, json=side),
    ):
        assert len(str(error)) < 300 + 3 * len(str(tmp_path))


def test_equality():
    assert table() == table(bvals=changed(BVALS, 0, -1e-9))  # a rounded 0
    for other in (table()[1:], table(frame="scanner"), table(small_delta=0.01), "a table", None):
        assert table() != other
    assert len({table()[0:2], table()[0:2], table()}) == 2  # a table may be a key


def changed(array, where, value):
    out = np.array(array, float)
    out[where] = value
    return out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bvals": changed(BVALS, 2, -4)}, r"bvals\[2\] = -4 is negative"),
        ({"bvals": changed(BVALS, 1, np.nan)}, r"bvals\[1\] = nan is not finite"),
        ({"bvals": BVALS[:-1]}, r"bvecs of shape \(7, 3\) do not go with 6 bvals"),
        ({"bvals": []}, r"bvals must be a list .* shape \(0,\)"),
        ({"bvals": BVALS[None]}, r"bvals must be a list .* shape \(1, 7\)"),
        ({"bvals": ["a"] * 7}, "bvals must be numbers"),
        ({"bvecs": BVECS[:, :2]}, r"bvecs of shape \(7, 2\)"),
        ({"bvecs": changed(BVECS, (3, 1), np.inf)}, r"bvecs\[3, 1\] = inf is not finite"),
        ({"bvecs": changed(BVECS, 4, BVECS[4] * 1.02)}, r"bvecs\[4\] .* 1010 has length 1\.02, n"),
        (
            {"bvecs": changed(BVECS, 4, 0)},
            r"bvecs\[4\] = \[0.0, 0.0, 0.0\] .* length 0, not 1: a t",
        ),
        ({"b0_threshold": 1, "bvecs": changed(BVECS, 1, 0)}, "b0 volume.* give b0_threshold=5$"),
        # found by fuzz: NumPy warned as well
        ({"bvecs": changed(BVECS, 4, 4.6e189)}, r"bvecs\[4\] = .* length inf, not 1"),
        ({"big_delta": None}, "big_delta is missing"),
        ({"small_delta": None}, "small_delta is missing"),
        ({"tau": 0.04}, r"tau = 0\.04 came with"),
        ({"big_delta": None, "small_delta": None}, "big_delta is missing.* or tau"),
        ({"big_delta": 43.1, "small_delta": 10.6}, r"big_delta = 43\.1 .*milliseconds\?"),
        ({"big_delta": -0.04}, r"big_delta = -0\.04 is not positive"),
        ({"small_delta": 0}, "small_delta = 0 is not positive"),
        ({"small_delta": 0.05}, r"small_delta = 0\.05 is longer than big_delta = 0\.0431"),
        ({"big_delta": np.inf}, "big_delta = inf is not finite"),
        ({"big_delta": [0.04, 0.05]}, r"big_delta of shape \(2,\) does not go with 7 bvals"),
        ({"big_delta": changed(np.full(7, 0.04), 5, 0.005)}, r"small_delta\[5\] = .* is longer"),
        ({"big_delta": None, "small_delta": None, "tau": 40}, r"tau = 40 .*milliseconds\?"),
        ({"b0_threshold": -1}, "b0_threshold must be .* not -1"),
        ({"b0_threshold": "low"}, "b0_threshold must be numbers: .*'low'"),
        ({"frame": "voxels"}, "frame must be .* not 'voxels'"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_refusals_name_argument_and_value(changes, message):
    refused(message, table, **changes)


def test_fsl_files(tmp_path):
    for columns in (False, True):
        bval, bvec = write_fsl(tmp_path, columns=columns)
        for layout in (BVALS[None], BVALS[:, None]):  # or one b-value a line
            np.savetxt(bval, layout)
            assert GradientTable.from_fsl(bval, bvec, **TIMES) == table()


def test_broken_files(tmp_path):
    bval, bvec = write_fsl(tmp_path)
    read = GradientTable.from_fsl
    gone = {"error": FileNotFoundError}
    refused(r"none\.bvec", read, bval, tmp_path / "none.bvec", **gone)
    refused(r"none\.json", read, bval, bvec, json=tmp_path / "none.json", **gone)
    refused(r"x\.bval", GradientTable.from_bids, tmp_path / "x.nii", bvec=bvec, **gone)
    for content, words in (
        (b"0 5 1000", r"dwi\.bval holds 3 numbers.*dwi\.bvec 7 directions"),
        (b"0 b 1000", r"dwi\.bval is not a table of numbers: .*'b'"),
        (b"\x93NUMPY\xff\x00", r"dwi\.bval is not a table of numbers"),
        (b"\n", r"dwi\.bval is not a table: its lines hold no numbers"),
        (b"1 0 0\n0 1\n0 0 1\n", r"lines hold \[3, 2, 3\] numbers"),
    ):
        bval.write_bytes(content)
        refused(words, read, bval, bvec, **TIMES)


def test_of_anything_like_a_table():
    gtab = table()
    assert GradientTable.of(gtab) is gtab
    like = SimpleNamespace(bvals=BVALS, bvecs=BVECS, **TIMES)
    assert GradientTable.of(like) == table(frame="voxel")  # the meaning of a DIPY table
    like.big_delta = like.small_delta = None
    like.b0_threshold = 2
    assert GradientTable.of(like, tau=0.025).tau == 0.025
    assert GradientTable.of(like, tau=0.025).b0s_mask.sum() == 1
    like.btens = np.einsum("v,vi,vj->vij", BVALS, BVECS, BVECS)
    assert GradientTable.of(like, tau=0.025).bvals[5] == BVALS[5]
    like.btens[5] = np.eye(3) * BVALS[5] / 3
    refused("the b-tensor of volume 5 is not linear", GradientTable.of, like, tau=0.025)
    like.btens = None
    refused("big_delta is missing", GradientTable.of, like)
    refused("not a list", GradientTable.of, [1, 2])


UP = np.array([[0.0, 2, 0], [0, 0, 2], [2, 0, 0]])  # i runs up, j to the right, k forward
OBLIQUE = phantom.random_rotation(np.random.default_rng(3)) @ np.diag([1.5, 2.0, 4.0])


@pytest.mark.nojit
@pytest.mark.parametrize(
    "axes", [np.diag([2.0, 2, 3]), UP, OBLIQUE], ids=["plain", "up", "oblique"]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_scanner_axes(axes, sign):
    """X of FSL's frame is that of the voxels, negated where the affine's determinant is above 0."""
    affine = np.block([[axes * [sign, 1, 1], np.array([[30], [-20], [10]])], [np.zeros(3), 1]])
    found = to_scanner(BVECS, affine)
    along = axes / np.linalg.norm(axes, axis=0) * [sign, 1, 1]
    assert_allclose(found, BVECS * [-sign, 1, 1] @ along.T, atol=1e-14)
    assert_allclose(turned(found, affine, "scanner", "image"), BVECS, atol=1e-14)
    for frame in ("image", "scanner"):
        assert_allclose(turned(BVECS, affine, frame, frame), BVECS, atol=1e-14)
    if axes is UP:  # by hand
        assert np.array_equal(to_scanner([1, 0, 0], affine), [0, 0, -1])
        assert np.array_equal(to_scanner([0, 1, 0], affine), [1, 0, 0])
        assert np.array_equal(to_scanner([1, 0, 0], affine, "scanner"), [1, 0, 0])


def test_bad_affines_and_frames():
    refused(r"affine\[0, 1\] = nan", to_scanner, BVECS, changed(np.eye(4), (0, 1), np.nan))
    refused("affine is singular", turned, BVECS, np.diag([1.0, 0, 1, 1]), "scanner", "image")
    refused("frame must be", to_scanner, BVECS, np.eye(4), "bvec")


def test_shells_of_a_cartesian_grid_stay_apart():
    b = np.repeat(400.0 * np.array([1, 2, 3, 4, 5, 6, 8, 9, 24, 25]), 3)
    gtab = GradientTable(np.r_[0, b], np.r_[np.zeros((1, 3)), np.tile(np.eye(3), (10, 1))], **TIMES)
    assert gtab.shells() == [(float(v), 3) for v in np.unique(b)]
    assert GradientTable([0, 10], np.zeros((2, 3)), **TIMES).shells() == []


def test_bounds_belong_to_what_is_allowed():
    """A time of 1 s, a direction missing on either side."""
    assert table(big_delta=1.0).big_delta == 1.0
    whole, hole = ({"bvals": BVALS, "bvecs": g} for g in (BVECS, changed(BVECS, 4, 0)))
    for pair in ((whole, whole), (whole, hole), (hole, whole)):
        angles = same_directions(*pair, np.eye(4))
        assert set(angles) == set(FRAMES)
        assert angles["scanner"] < 1e-5
