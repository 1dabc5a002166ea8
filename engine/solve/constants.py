"""The numbers of the solver, each with its unit and its reason.

Code below the solver, the kernels of a GPU included, takes these numbers as arguments. The exporter imports them. No
number has a copy.
"""

from __future__ import annotations

# Iterations of a solver, the same number for all blends.
ITERATIONS = {"gauss_newton": 8, "adam": 200}

# The likelihood, see `objective`.
CLIP = 4.0  # sigma: residuals beyond it lose weight
MODEL_ERROR = 0.05  # e: relative error of a model that never counts as a misfit
START_ERROR = 0.5  # e at the start, where the models' shapes are rough

# Tempering: tau falls from the first value to the last one, and is 0 after this share of the iterations.
FIRST_TEMPER, LAST_TEMPER, TEMPERED_SHARE = 0.1, 2e-3, 0.6

# The prior.
CENTER_SIGMA = 0.2  # pixel: standard deviation of the caller's centres, unless stated
COLOR_SLACK = 0.1  # ln flux: added to the population's scatter of a colour, for bands without weight
FREE_FLUX_CURVATURE = 1e-3  # a standard deviation of 30 in ln flux: keeps the block of a flux at its floor regular
# The secant update of the prior's curvature is skipped where the new curvature along the step is out of proportion to
# the old one, or where the old one is too small to divide by.
MIN_SECANT_RATIO, MAX_SECANT_RATIO, MIN_SECANT_CURVATURE = 0.1, 100.0, 1e-10

# Damping lambda of a blend. After a rejected step it is at least `REJECTED_DAMPING`: from `MIN_DAMPING` on, up to five
# more steps were rejected before lambda was large enough to change the step.
FIRST_DAMPING, MIN_DAMPING, REJECTED_DAMPING, MAX_DAMPING = 1e-2, 1e-4, 2e-2, 1e4
REJECTED_FACTOR = 8.0  # where L did not fall
POOR_DECREASE, POOR_FACTOR = 0.25, 4.0  # where L fell by less than this share of the expected decrease
GOOD_DECREASE, GOOD_FACTOR = 0.5, 0.25  # where L fell by at least this share
FLUX_DAMPED = 0.1  # lambda from which on fluxes are damped too: the second rejected step in a row

# The covariance at the solution.
PRIOR_STEP = 0.3  # of shapes, for central differences; a posterior's width. Pulls are the same from 0.05 to 1
COVARIANCE_RIDGE = 3e-6  # of the unit diagonal: blocks are summed in float32

# Detail, see `detail`.
SHARED_SNR, BAND_SNR = 30.0, 150.0  # signal to noise, all bands together, from which a galaxy has each kind of modes
DETAIL_FREEDOM = 4.0  # nu; from 1 to 20 the results are equivalent
MIN_SCALE, MAX_SCALE = 1e-3, 300.0  # of a source's detail
DETAIL_PASSES = 2
# The joint solve is linear. An offset (pixel) or a shape (standard deviations of the prior) that would move farther
# stays, and the rest is solved for again.
MAX_LINEAR_OFFSET, MAX_LINEAR_SHAPE, HOLD_ROUNDS = 0.3, 1.0, 3

# The fitted sky, see `measure.fitted_sky`.
SKY_PRIOR = 0.2  # sigma per pixel: standard deviation of a sky around zero, in the noise of a band's median pixel
SKY_STEPS = 1  # descents before the last one; each of them ends with a joint step of the sky

# Limits of a step.
MIN_FLUX_FACTOR, MAX_FLUX_FACTOR = 0.3, 3.0
MAX_OFFSET_STEP = 0.3  # pixel
MAX_DRIFT = 0.75  # pixel: all steps together, from the caller's centre
MAX_SHAPE_STEP = 3.0  # standard deviations of the prior

# Further rounds of single blends: each number is a round's iterations, as a share of the first iterations. A blend goes
# on while its last step promised a decrease of L above `MOVING_DECREASE`, or if its light has outgrown its windows.
MOVING_DECREASE, FURTHER_ROUNDS = 0.3, (0.5, 0.5, 1.0, 1.0, 2.0)

# The joint step of a blend.
MAX_DENSE = 10  # sources of a blend that one dense system solves; LAPACK splits larger ones over threads: other bits
N_CONJUGATE = 20  # iterations of conjugate gradients for larger blends
JOINT_RIDGE = 1e-5  # on the unit diagonal: blocks are summed in float32
BLOCK_RIDGE = 1e-6  # the same, for the block of a single source

# Windows.
MAX_UNDRAWN = 0.3  # signal to noise of the light outside the window; pulls beside a large galaxy are a third wider at 1
RIM = 5  # pixel: the edge of a window where the weight of the outskirts is taken

# The start.
ENCODINGS = 3  # from the second one on, a source is encoded without the others' light, as last found
# Share of a cutout's pixels that must be known, or their opposites; below it the shape starts at the prior's mean.
ENCODER_COVERAGE = 0.8
MAX_HOLE = 5  # pixel: holes of a cutout are filled from their rims so far
START_SWEEPS = 1  # sweeps of joint linear fluxes: neighbours are subtracted again at the next encoding
FLOOR_SIGMA = 0.05  # log fluxes are held above this many standard deviations of the linear flux
SIGNIFICANT_LIGHT = 1.0  # sigma per pixel, all bands together: brighter light of a source counts, for its blend too

# Unlisted sources. Significances are signal to noise of all bands together.
PEAK_THRESHOLD = 7.0  # white noise in six bands exceeds it once in 1e8 pixels; correlated noise does more often
UNLISTED_THRESHOLD = 10.0  # least, of fitted peaks: fainter sources harm little, and the start has fainter misfits
UNLISTED_GAIN = 25.0  # decrease of L that each fitted peak must bring; a peak that was no source raised L by 15
PEAK_REACH = 2.0  # PSF FWHM: `START_ERROR` of the brightest model light within it counts as noise
BLINDING_PEAK = 3000.0  # brighter peaks within `PEAK_REACH` of a listed source are not fitted: their misfit harms more
PEAK_NEAR = 3.0  # arcsec: sources nearer to a peak are flagged
STAR_SIGNIFICANCE, STAR_CONCENTRATION = 100.0, 0.8  # peaks above both are stars; stars have 0.9, small galaxies 0.7

# Joint linear fluxes.
FINAL_SWEEPS = 2  # sweeps after the descent, from the MAP fluxes
# A ridge on the unit diagonal: coincident sources keep the ratio of their fluxes instead of amplifying rounding errors.
# It acts on steps, so it does not bias fluxes on which the sweeps have converged.
FLUX_RIDGE = 1e-4

# Adam as published (Biswas et al. 2025): the rate falls by a factor after a number of iterations.
ADAM_RATE, ADAM_RATE_FACTOR, ADAM_RATE_EVERY = 0.075, 0.8, 30
ADAM_BETA, ADAM_SHARE = (0.9, 0.999), (0.1, 0.001)  # running means of gradient and its square: beta, 1 - beta
ADAM_EPSILON = 1e-8
