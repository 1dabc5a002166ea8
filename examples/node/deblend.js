'use strict';
// A solver of `deblendrt-export --solver`: an image and a list of centres in, one row per centre out.

const ort = require('onnxruntime-node');

// bits of a source's flags, as in deblendrt.engine.scene.flags
const FLAGS = [
  'NON_FINITE', 'NO_DATA', 'OFF_IMAGE', 'EDGE', 'TOO_CLOSE', 'MASKED_CENTER', 'VARIANCE_ESTIMATED', 'BAND_MISSING',
  'NOT_CONVERGED', 'PRIOR_OUTLIER', 'POOR_FIT', 'PSF_NOT_NORMALIZED', 'PSF_TOO_NARROW', 'CENTER_NOT_FINITE',
  'UNMODELLED_FLUX', 'BAD_VARIANCE', 'OUTSIDE_PRIOR_FLUX', 'NEIGHBOUR_SUSPECT', 'FOUND', 'PSF_MISSING',
  'NEAR_RESIDUAL_PEAK', 'SKY_OFFSET', 'PSF_NOMINAL', 'ZERO_PIXELS',
];

class Solver {
  /** Load a graph; takes seconds, so do it once. */
  static async load(path) {
    const session = await ort.InferenceSession.create(path, {
      intraOpNumThreads: 1, // scenes are what to run in parallel
      interOpNumThreads: 1,
      logSeverityLevel: 3,
    });
    return new Solver(session);
  }

  constructor(session) {
    this.session = session;
    const shape = (name) => session.inputMetadata.find((input) => input.name === name).shape;
    this.shape = shape('image'); // bands, rows, columns
    this.places = shape('centers')[0];
  }

  /**
   * Separate the sources of a scene.
   *
   * @param {Float32Array} image [nJy], band by band, row by row; NaN pixels are dropped
   * @param {Float32Array} variance [nJy^2]; Infinity masks a pixel
   * @param {number[][]} centers (x, y) [pixel], 0-based, an integer is a pixel's centre; at most `places`
   * @returns {Promise<{rows: object[], model: Float32Array, objective: number, chi2: number, iterations: number}>}
   */
  async deblend(image, variance, centers) {
    const size = this.shape.reduce((a, b) => a * b, 1);
    if (image.length !== size || variance.length !== size) {
      throw new RangeError(`image and variance: expected ${size} pixels (${this.shape.join(' x ')}), ` +
        `got ${image.length} and ${variance.length}`);
    }
    if (centers.length > this.places) {
      throw new RangeError(`centers: ${centers.length} sources, this solver has ${this.places} places: ` +
        `export one with --sources ${centers.length}`);
    }
    const place = new Float32Array(2 * this.places);
    const valid = new Uint8Array(this.places);
    centers.forEach(([x, y], i) => {
      place[2 * i] = x;
      place[2 * i + 1] = y;
      valid[i] = 1;
    });
    const found = await this.session.run({
      image: new ort.Tensor('float32', image, this.shape),
      variance: new ort.Tensor('float32', variance, this.shape),
      centers: new ort.Tensor('float32', place, [this.places, 2]),
      valid: new ort.Tensor('bool', valid, [this.places]),
    });
    const part = (name, i) => {
      const width = found[name].data.length / this.places;
      return Array.from(found[name].data.subarray(i * width, (i + 1) * width));
    };
    const rows = centers.map((center, i) => ({
      position: part('position', i), position_err: part('position_err', i),
      flux: part('flux', i), flux_err: part('flux_err', i), map_flux: part('map_flux', i),
      chi2: part('chi2', i)[0], n_pixel: part('n_pixel', i)[0], blend: part('blend', i)[0],
      flags: part('flags', i)[0], flag_names: FLAGS.filter((_, bit) => part('flags', i)[0] & (1 << bit)),
    }));
    return { rows, model: found.model.data, objective: found.objective.data[0], chi2: found.scene_chi2.data[0],
      iterations: found.n_iteration.data[0] };
  }
}

module.exports = { Solver, FLAGS };
