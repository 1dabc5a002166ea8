import numpy as np
import pytest

from deblendrt.engine.scene.flags import DESCRIPTIONS, NOT_FITTED, Flag, describe, trusted


def test_every_flag_is_one_bit_and_described():
    assert set(DESCRIPTIONS) == set(Flag)
    assert all(flag.value.bit_count() == 1 for flag in Flag)
    assert all(text and not text.endswith(".") for text in DESCRIPTIONS.values())


def test_bits_are_part_of_the_file_format():
    names = """NON_FINITE NO_DATA OFF_IMAGE EDGE TOO_CLOSE MASKED_CENTER VARIANCE_ESTIMATED BAND_MISSING NOT_CONVERGED
        PRIOR_OUTLIER POOR_FIT PSF_NOT_NORMALIZED PSF_TOO_NARROW CENTER_NOT_FINITE UNMODELLED_FLUX BAD_VARIANCE
        OUTSIDE_PRIOR_FLUX NEIGHBOUR_SUSPECT FOUND PSF_MISSING NEAR_RESIDUAL_PEAK SKY_OFFSET PSF_NOMINAL ZERO_PIXELS"""
    assert [flag.name for flag in Flag] == names.split()
    assert [flag.value for flag in Flag] == [1 << bit for bit in range(len(Flag))]


def test_describe_names_each_bit():
    lines = describe(Flag.OFF_IMAGE | Flag.EDGE)
    assert [line.split(":")[0] for line in lines] == ["OFF_IMAGE", "EDGE"]
    assert describe(0) == []


@pytest.mark.parametrize("value", [1 << 40, -1])
def test_describe_refuses_unknown_bits(value):
    with pytest.raises(ValueError, match="flags"):
        describe(value)


def test_not_fitted_is_said_so():
    for flag, text in DESCRIPTIONS.items():
        assert bool(flag & NOT_FITTED) == text.endswith("not fitted")


def test_trusted_sources_have_none_of_seven_flags() -> None:
    names = ("NO_DATA", "OFF_IMAGE", "CENTER_NOT_FINITE", "POOR_FIT", "NOT_CONVERGED", "PRIOR_OUTLIER",
             "NEIGHBOUR_SUSPECT")
    alone = np.array([0, *Flag], np.int64)
    expected = [True, *(flag.name not in names for flag in Flag)]
    np.testing.assert_array_equal(trusted(alone), expected)
    np.testing.assert_array_equal(trusted(alone | int(Flag.EDGE)), expected)
    assert not trusted(alone | int(Flag.POOR_FIT)).any()
