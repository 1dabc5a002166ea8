import dataclasses
import pickle

import numpy as np
import pytest

from deblendrt.engine.compute.drawing import TILE

N_BAND = 2
SHAPES = [(30, 40), (25, 8), (12, 12)]
PER_SCENE = [TILE + 9, 3, 0]


def test_sizes(result):
    assert (result.n_scene, result.n_source) == (3, sum(PER_SCENE))
    assert [result.sources(k) for k in (0, 1, -1)] == [slice(0, 41), slice(41, 44), slice(44, 44)]
    assert result.fitted.sum() == result.n_source - 3
    assert repr(result) == "DeblendResult(44 sources, 41 fitted, in 3 scenes, bands g, i)"


@pytest.mark.parametrize("i_scene", [0, 1, 2, -2])
def test_model_is_the_sum_of_stamps_cut_to_the_image(result, i_scene):
    n_y, n_x = SHAPES[i_scene]
    room = 100  # holds every stamp whole
    expected = np.zeros((N_BAND, n_y + 2 * room, n_x + 2 * room))
    for i in range(*result.sources(i_scene).indices(result.n_source)):
        stamp, (x, y) = result.stamps(i)
        w = stamp.shape[-1]
        expected[:, room + y : room + y + w, room + x : room + x + w] += stamp
    model = result.model(i_scene)
    assert model.shape == (N_BAND, n_y, n_x)
    assert model.dtype == np.float32
    np.testing.assert_allclose(model, expected[:, room:-room, room:-room], atol=1e-4)


def test_stamp_is_coefficients_times_folded_basis(result):
    for i in (0, 41, -2):
        stamp, (x, y) = result.stamps(i)
        folded = result.folded[result.folded_index[i]]
        expected = np.einsum("bk,bkp->bp", result.coefficients[i].astype(float), folded.phi.astype(float))
        np.testing.assert_allclose(stamp.reshape(N_BAND, -1), expected, atol=1e-5)
        assert (x + folded.half, y + folded.half) == tuple(result.anchor[i])
        assert stamp.dtype == np.float32


def test_sources_that_were_not_fitted_have_an_empty_model(result):
    for i in np.flatnonzero(~result.fitted):
        assert np.isnan(result.flux[i]).all()
        assert not result.stamps(i)[0].any()
    assert np.isfinite(result.model(0)).all()


def test_residual(result):
    scene = result.scenes[0]
    residual = result.residual(0)
    used = scene.inverse_variance > 0
    sky = result.sky[0].astype(np.float32)[:, None, None]
    assert sky.all()
    np.testing.assert_array_equal(residual[used], (scene.image - sky - result.model(0))[used])
    assert not residual[~used].any()
    assert (~used).any()
    assert residual.dtype == np.float32


def test_reduced_chi2_without_pixels_is_nan(result):
    np.testing.assert_allclose(result.reduced_chi2[result.fitted], result.chi2[result.fitted] / 100)
    assert np.isnan(result.reduced_chi2[~result.fitted]).all()


@pytest.mark.parametrize(("method", "index"), [("model", 3), ("residual", -4), ("sources", 3), ("stamps", 44)])
def test_index_out_of_range(result, method, index):
    with pytest.raises(IndexError):
        getattr(result, method)(index)


def test_color(result):
    flux = np.abs(result.flux)
    flux[7, 0] = -1
    result = dataclasses.replace(result, flux=flux)
    color, error = result.color("g", "i")
    known = result.fitted.copy()
    known[7] = False
    assert np.isnan(color[~known]).all()
    assert np.isnan(error[~known]).all()
    g, i = result.flux[known].T
    np.testing.assert_allclose(color[known], -2.5 * np.log10(g) + 2.5 * np.log10(i))
    gradient = 2.5 / np.log(10) * np.stack([-1 / g, 1 / i], axis=1)
    expected = np.sqrt(np.einsum("na,nab,nb->n", gradient, result.flux_cov[known], gradient))
    np.testing.assert_allclose(error[known], expected)
    np.testing.assert_allclose(result.color("i", "g")[0][known], -color[known])


@pytest.mark.parametrize(("name", "bands"), [("blue", ("u", "g")), ("red", ("g", "u"))])
def test_color_of_an_unknown_band(result, name, bands):
    with pytest.raises(ValueError, match=f"{name}: expected one of the bands g, i, got 'u'"):
        result.color(*bands)


def test_flux_covariance(result):
    largest = np.bincount(result.blend[result.fitted]).argmax()
    rows = [-2, *np.flatnonzero(result.blend == largest)[::-1], 4, 0, 4, 2]
    index = np.arange(result.n_source)[rows]
    covariance = result.flux_covariance(rows)
    assert covariance.shape == (len(rows), N_BAND, len(rows), N_BAND)
    n_shared = 0
    for a, i in enumerate(index):
        for b, j in enumerate(index):
            block = covariance[a, :, b]
            if i == 2 or j == 2:  # not fitted
                assert np.isnan(block).all()
            elif i == j:
                np.testing.assert_array_equal(block, result.flux_cov[i])
            elif result.blend[i] == result.blend[j]:
                member = np.flatnonzero(result.blend == result.blend[i]).tolist()
                blend = result.blend_flux_cov[result.blend[i]]
                np.testing.assert_array_equal(block, blend[member.index(i), :, member.index(j)])
                n_shared += 1
            else:
                assert not block.any()
    assert n_shared > 0


def test_flux_covariance_is_one_matrix(result):
    covariance = result.flux_covariance(np.flatnonzero(result.fitted))
    matrix = covariance.reshape(result.fitted.sum() * N_BAND, -1)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix).min() > 0
    assert result.flux_covariance([]).shape == (0, N_BAND, 0, N_BAND)
    with pytest.raises(IndexError, match="rows: expected an index below 44, got 44"):
        result.flux_covariance([44])


def test_arrays_are_read_only(result):
    for again in (result, pickle.loads(pickle.dumps(dataclasses.replace(result, folded=None)))):
        with pytest.raises(ValueError, match="read-only"):
            again.flux[0] = 1
        with pytest.raises(ValueError, match="read-only"):
            again.blend_flux_cov[0][:] = 0
