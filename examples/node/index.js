'use strict';
// node index.js [--json] SOLVER.onnx IMAGE.fits...
//
// Prints a catalogue of every image: with --json one line each, { file, seconds, cpu_seconds, rows, ... } or { file, error }.
// Files have IMAGE and VARIANCE (band, y, x) in nJy and nJy^2, and a table CENTERS with x and y.

const { Solver } = require('./deblend.js');
const fits = require('./fits.js');

function read(path) {
  const hdus = fits.readFits(path);
  for (const name of ['IMAGE', 'VARIANCE', 'CENTERS']) {
    if (!hdus[name]) throw new Error(`${path}: no HDU ${name}`);
  }
  const x = fits.column(hdus.CENTERS, 'x');
  const y = fits.column(hdus.CENTERS, 'y');
  return { image: fits.image(hdus.IMAGE).values, variance: fits.image(hdus.VARIANCE).values,
    centers: x.map((value, i) => [value, y[i]]) };
}

function table(result) {
  const number = (v, digits) => (Number.isNaN(v) ? 'nan' : v.toFixed(digits)).padStart(9);
  const lines = [`${'x'.padStart(9)}${'y'.padStart(9)}   flux +- error [nJy], band by band; flags`];
  for (const row of result.rows) {
    const fluxes = row.flux.map((f, b) => `${number(f, 1)} ± ${number(row.flux_err[b], 1).trim()}`);
    lines.push(`${row.position.map((v) => number(v, 2)).join('')} ${fluxes.join('')}  ${row.flag_names.join(' ')}`);
  }
  return lines.join('\n');
}

async function main() {
  const json = process.argv.includes('--json');
  const [graph, ...files] = process.argv.slice(2).filter((word) => word !== '--json');
  if (!graph || files.length === 0) {
    console.error('usage: node index.js [--json] SOLVER.onnx IMAGE.fits...');
    process.exit(2);
  }
  const solver = await Solver.load(graph);
  let failed = 0;
  for (const file of files) {
    const start = process.hrtime.bigint();
    const cpu = process.cpuUsage();
    try {
      const { image, variance, centers } = read(file);
      const result = await solver.deblend(image, variance, centers);
      const seconds = Number(process.hrtime.bigint() - start) / 1e9;
      const { user, system } = process.cpuUsage(cpu);
      if (json) {
        const { rows, objective, chi2, iterations } = result;
        // JSON has no NaN: it becomes null
        console.log(JSON.stringify({ file, seconds, cpu_seconds: (user + system) / 1e6, objective, chi2, iterations, rows }));
      } else {
        console.log(`${file}: ${result.rows.length} sources, ${result.iterations} iterations, ${seconds.toFixed(2)} s`);
        console.log(table(result));
      }
    } catch (error) {
      failed += 1;
      if (json) console.log(JSON.stringify({ file, error: error.message }));
      else console.error(`${file}: ${error.message}`);
    }
  }
  process.exit(failed ? 1 : 0);
}

main();
