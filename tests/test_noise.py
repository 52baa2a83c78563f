"""The noise floor, the rule for S0, the Laplacian of the deviation, and thresholds, through the model."""

import numpy as np
import oracle
import phantom
import pytest
import truth
from numpy.testing import assert_allclose

import mapmri_nb as mapmri
from mapmri_nb import uncertainty
from mapmri_nb.scales import scale_threshold, tensor_spread

TAU = 0.03
GAUSSIANS = [
    truth.MIXTURES[name] for name in ("(1.7,.3,.3)", "(1.7,.5,.2)", "(.9,.8,.75)", "CSF 3.0")
]
MODES = [(None, 1e-9), ("grid", 1e-5), ("global", 1e-3)]


@pytest.fixture(scope="module")
def table():
    """18 b0 and three shells of 90."""
    return mapmri.GradientTable(*truth.scheme_hcp(), tau=TAU)


@pytest.fixture(scope="module")
def crossing(table):
    """A clean crossing of two fibres, S0 = 100."""
    return 100.0 * truth.mixture_signal(*truth.MIXTURES["X60"], table.bvals, table.bvecs)


def rician(clean, sigma, voxels, seed=0, coils=1):
    """Magnitudes (voxels, n) of a clean signal (n,)."""
    parts = sigma * np.random.default_rng(seed).standard_normal((2 * coils, voxels, len(clean)))
    parts[0] += clean
    return np.sqrt((parts**2).sum(0))


@pytest.mark.parametrize(("mode", "bound"), MODES)
@pytest.mark.parametrize("rule", ["fit", "free", "b0"])
@pytest.mark.parametrize("laplacian", [None, 0.2, 5.0, "gcv", [0.1, 1.0]])
def test_gaussians_are_exact(table, mode, bound, laplacian, rule):
    """At any weight and by every rule for S0: they lie on the edge of the cones, and no residual
    contradicts the tensor's scale. The deviation is from the basis' own first function.
    """
    y = [100 * truth.mixture_signal(*m, table.bvals, table.bvecs) for m in GAUSSIANS]
    for basis in phantom.BASES if laplacian == 5.0 else phantom.BASES[:1]:
        options = {"positivity": mode, "laplacian": laplacian, "S0": rule, "basis": basis}
        fit = mapmri.MapmriModel(table, **options).fit(np.array(y))
        exact = [len(y) - 1] if basis == "isotropic" else range(len(y) if rule == "fit" else 1)
        for v in exact:
            want = truth.mixture_truth(*GAUSSIANS[v], TAU)
            for name in ("rtop", "rtap", "rtpp", "msd"):
                assert abs(fit.index_rows(name)[v] / want[name] - 1) < bound
            assert abs(fit.S0[v] / 100.0 - 1) < bound
            assert_allclose(fit.mu[v], fit.mu_tensor[v], rtol=1e-7)


@pytest.mark.parametrize("mode", [None, "grid", "global"])
def test_b0_rule_is_the_limit_of_the_row(table, crossing, mode):
    """E(0) = S0 holds exactly; a free fit that meets the mean b0 is the same fit."""
    y = rician(crossing, 4.0, 3)
    nailed, one, free = (
        mapmri.MapmriModel(table, positivity=mode, S0=rule).fit(y) for rule in ("b0", "fit", "free")
    )
    gap_one, gap_free = (np.abs(f.S0 / nailed.S0 - 1) for f in (one, free))
    assert (gap_one < gap_free).all()
    assert (gap_free > 1e-6).all()
    assert_allclose(nailed.coef @ oracle.aniso_origin(6), 1, rtol=1e-9)


@pytest.mark.parametrize("mode", [None, "grid", "global"])
@pytest.mark.parametrize("given", [True, False])
def test_bias_no_longer_depends_on_the_noise(table, crossing, mode, given):
    """RTOP at SNR 12 and at 40: 10 % and more apart without the model of the noise."""
    medians, plain = [], []
    for snr in (12.0, 40.0):
        y = rician(crossing, 100.0 / snr, 150, seed=int(snr))
        model = mapmri.MapmriModel(table, positivity=mode, noise="rician")
        fit = model.fit(y, sigma=100.0 / snr if given else None)
        assert (fit.status & (mapmri.Status.NO_FIT | mapmri.Status.UNSETTLED) == 0).all()
        # what positivity cannot fit counts as noise
        assert_allclose(
            np.median(fit.sigma) * snr / 100.0, 1.0, atol=0.03 if mode is None else 0.05
        )
        medians.append(np.median(fit.index_rows("rtop")))
        plain.append(
            np.median(mapmri.MapmriModel(table, positivity=mode).fit(y).index_rows("rtop"))
        )
    assert abs(medians[0] / medians[1] - 1) < 0.04
    assert plain[0] / plain[1] - 1 > 0.08


def test_noise_free_data_stay(table, crossing):
    """Without noise the correction changes nothing."""
    plain = mapmri.MapmriModel(table, laplacian=None).fit(crossing[None])
    fit = mapmri.MapmriModel(table, laplacian=None, noise="rician").fit(crossing[None], sigma=1e-6)
    assert_allclose(fit.coef, plain.coef, atol=1e-7)
    assert fit.status[0] == plain.status[0] == 0


def test_coils(table, crossing):
    """Noncentral chi: the floor of four coils is taken out with coils=4, not with coils=1."""
    y = rician(crossing, 6.0, 200, coils=4)
    right, wrong = (
        mapmri.MapmriModel(table, noise="rician", coils=c).fit(y, sigma=6.0) for c in (4, 1)
    )
    low = mapmri.MapmriModel(table, noise="rician").fit(rician(crossing, 6.0, 200), sigma=6.0)
    a, b, c = (np.median(f.index_rows("rtop")) for f in (right, wrong, low))
    assert abs(a / c - 1) < 0.06
    assert b / c - 1 > 0.15
    estimated = mapmri.MapmriModel(table, noise="rician", coils=4).fit(y)
    assert_allclose(np.median(estimated.sigma), 6.0, rtol=0.04)


def test_denoised(table, crossing):
    """The mean is inverted: what is left is the clean fit."""
    sigma = 12.0
    floor = np.array([mapmri.kernels.noise.expected_magnitude(s, sigma, 1) for s in crossing])
    clean = mapmri.MapmriModel(table).fit(crossing[None])
    fit = mapmri.MapmriModel(table, noise="denoised").fit(floor[None], sigma=sigma)
    assert_allclose(fit.coef, clean.coef, atol=1e-7)
    assert_allclose(fit.predict(noisy=True)[0], floor, rtol=0.05)
    assert fit.sigma[0] == sigma


def test_predict(table, crossing):
    """The expected magnitude is above the clean signal, and nearer to the measured mean."""
    y = rician(crossing, 10.0, 300)
    fit = mapmri.MapmriModel(table, noise="rician").fit(y, sigma=10.0)
    clean, noisy = fit.predict(), fit.predict(noisy=True)
    assert (noisy > clean).all()
    high = table.bvals > 2500
    measured = y[:, high].mean()
    assert abs(noisy[:, high].mean() - measured) < 0.25 * abs(clean[:, high].mean() - measured)
    residual = np.sqrt(np.mean((y - noisy) ** 2, 1))
    assert_allclose(fit.rmse(), residual, rtol=1e-4)


def test_negative_samples_stay(table, crossing):
    """A negative sample is no magnitude: it is fitted as it is."""
    y = rician(crossing, 3.0, 1)
    y[0, 100] = -2.0
    fit = mapmri.MapmriModel(table, noise="rician").fit(y, sigma=3.0)
    assert np.isfinite(fit.coef).all()
    assert fit.status[0] & mapmri.Status.DROPPED


def test_errors(table, crossing):
    """Each names its argument; those of options are in test_model.py."""
    y = crossing[None]
    with pytest.raises(ValueError, match="noisy: the fit needs"):
        mapmri.MapmriModel(table).fit(y).predict(noisy=True)
    for noise, sigma, words in (
        ("denoised", None, "sigma: noise='denoised' needs it"),
        ("rician", -1.0, "finite and positive"),
        ("rician", np.ones(5), "number or have shape"),
    ):
        with pytest.raises(ValueError, match=words):
            mapmri.MapmriModel(table, noise=noise).fit(y, sigma=sigma)


def test_preset(table):
    """The published method's options."""
    paper = mapmri.MapmriModel(table, preset="paper").options
    assert (paper["laplacian_of"], paper["S0"], paper["bval_threshold"]) == ("signal", "free", 2100)
    assert paper["eigenvalue_threshold"] == 1e-4
    assert mapmri.MapmriModel(table, preset="paper", positivity="grid").options["S0"] == "b0"


def shells(*counts, seed=0):
    """A table of (b, number of directions)."""
    b = np.concatenate([np.full(count, float(value)) for value, count in counts])
    g = phantom.unit(np.random.default_rng(seed).standard_normal((len(b), 3)))
    return mapmri.GradientTable(b, g, tau=TAU)


def test_threshold_follows_the_table(table):
    """2100 where that determines the tensor, more where it does not, and nothing but the table decides."""
    assert scale_threshold(table) == 2100.0
    thin = shells((0, 2), (1500, 9), (3500, 30), (6000, 60))
    assert tensor_spread(thin, 2100) > 2.0
    assert 3500 < scale_threshold(thin) < 6000
    fixed = shells((0, 4), (304, 20), (10504, 60), (22391, 90))
    assert 10504 < scale_threshold(fixed) < 22391
    assert mapmri.MapmriModel(thin).options["bval_threshold"] == scale_threshold(thin)
    assert tensor_spread(shells((0, 1), (1000, 3)), 2100) == np.inf
    assert scale_threshold(shells((0, 1), (1000, 3), (3000, 1), (4000, 1))) == 4200.0


def test_thin_threshold_warns(caplog):
    """A threshold that the caller gave is kept, and said to be thin."""
    mapmri.MapmriModel(shells((0, 1), (1500, 8), (4000, 60)), 4, bval_threshold=2100)
    assert "thin" in caplog.text


def test_fixed_tissue_warns_and_keeps_its_anisotropy(table, caplog):
    """The floor follows the tissue; b that hardly attenuates is said with its numbers, of many
    voxels too, of which some are looked at.
    """
    slow = ((1.0,), [np.diag([0.25e-3, 0.05e-3, 0.05e-3])])
    y = np.tile(truth.mixture_signal(*slow, table.bvals, table.bvecs), (1500, 1))
    fit = mapmri.MapmriModel(table).fit(y)
    assert "fixed tissue" in caplog.text
    assert "diffusivity is 0.00012 mm2/s" in caplog.text
    assert fit.status[0] == 0
    assert_allclose(fit.mu_tensor[0] ** 2 / (2 * TAU), [0.25e-3, 0.05e-3, 0.05e-3], rtol=1e-6)
    caplog.clear()
    limit = float(table.bvals[table.bvals < 2100].max())
    model = mapmri.MapmriModel(table, eigenvalue_threshold=1e-4, bval_threshold=limit)
    floored = model.fit(y)
    assert "at the floor" in caplog.text
    assert f"{(table.bvals > limit).sum()} volumes have more" in caplog.text  # at it is below
    assert floored.status[0] & mapmri.Status.FLOOR


def test_impossible_indices_are_marked(table):
    """A signal that rises with b has an MSD below zero."""
    y = 50.0 + 20.0 * np.exp(0.2e-3 * table.bvals)[None]
    fit = mapmri.MapmriModel(table, preset="paper").fit(y)
    low = min(fit.index_rows(k)[0] for k in ("msd", "rtap", "rtpp", "qiv"))
    assert low <= 0 or np.abs(fit.predict(S0=1)).max() > 1.05
    assert fit.status[0] & mapmri.Status.OUT_OF_RANGE


def test_positivity_without_a_weight_needs_as_many_samples(table):
    """As MAP does."""
    few = np.r_[np.flatnonzero(table.b0s_mask)[:2], 18:50]
    for mode in ("grid", "global"):
        with pytest.raises(ValueError, match="radial_order"):
            mapmri.MapmriModel(table[few], positivity=mode, laplacian=None)
        assert mapmri.MapmriModel(table[few], positivity=mode).n_coef == 50


def test_many_negative_samples_are_a_warning(table, caplog):
    y, model = np.full((5, len(table)), 10.0), mapmri.MapmriModel(table, 2)
    y[4] = 0.0  # no signal: not counted
    for rows, said in ((slice(0, 4), True), (slice(0, 1), False)):
        some = y.copy()
        some[rows, 1::40] = -1.0
        caplog.clear()
        model.fit(some)
        share = f"{100 * (some < 0).sum() / y[:4].size:.3g} % " if said else ""
        assert (f"{share}of the samples are negative" in caplog.text) == said


def test_error_bars_are_the_scatter(table, crossing):
    """Of magnitudes with a model of their noise; the posterior has the prior besides."""
    y = rician(crossing, 5.0, 200)
    model = mapmri.MapmriModel(table, noise="rician")
    fit, some = model.fit(y), y[:12]
    found = uncertainty.bootstrap(model, some, n=60, hold=False, indices="rtop,msd,ng")
    wide = uncertainty.posterior(model, some, indices="rtop,msd,ng")
    for name, sd in found.sd.items():
        scatter = fit.index_rows(name).std()
        assert np.median(sd) == pytest.approx(scatter, rel=0.2), name
        assert 1.0 < np.median(wide.sd[name]) / scatter < 3.0, name


def test_replicates_choose_again_what_the_voxels_chose(table):
    for options, held in (
        ({}, True),
        ({"positivity": "grid"}, True),
        ({"laplacian": "gcv"}, False),
    ):
        assert uncertainty.held_by_default(mapmri.MapmriModel(table, 4, **options)) is held
    strong = mapmri.GradientTable(3 * table.bvals, table.bvecs, tau=TAU)
    assert not uncertainty.held_by_default(mapmri.MapmriModel(strong, 4))


@pytest.mark.nojit
def test_a_static_diffusivity_is_the_scale(table):
    """u0 = sqrt(2 d tau) [Fick 2016]."""
    model = mapmri.MapmriModel(table, 2, basis="isotropic", static_diffusivity=0.7e-3)
    assert model.plan.static_scale == pytest.approx(np.sqrt(2 * 0.7e-3 * TAU), rel=1e-14)
