'use strict';
// As much of FITS as the example needs: images of 32- or 64-bit floats, and columns of numbers in binary tables.

const fs = require('node:fs');

const BLOCK = 2880;

/** HDUs of a file by EXTNAME: { header, data } with the raw bytes. */
function readFits(path) {
  const bytes = fs.readFileSync(path);
  const hdus = {};
  let at = 0;
  while (at < bytes.length) {
    const header = {};
    for (let end = false; !end; at += BLOCK) {
      if (at + BLOCK > bytes.length) throw new Error(`${path}: a header is cut off`);
      for (let card = at; card < at + BLOCK; card += 80) {
        const text = bytes.toString('latin1', card, card + 80);
        const key = text.slice(0, 8).trim();
        if (key === 'END') end = true;
        else if (text.slice(8, 10) === '= ') header[key] = value(text.slice(10));
      }
    }
    let size = header.NAXIS ? Math.abs(header.BITPIX) / 8 : 0;
    for (let k = 1; k <= header.NAXIS; k++) size *= header[`NAXIS${k}`];
    size += header.PCOUNT || 0;
    if (at + size > bytes.length) throw new Error(`${path}: data are cut off`);
    hdus[header.EXTNAME || 'PRIMARY'] = { header, data: bytes.subarray(at, at + size) };
    at += Math.ceil(size / BLOCK) * BLOCK;
  }
  return hdus;
}

function value(text) {
  const quoted = /^\s*'((?:[^']|'')*)'/.exec(text);
  if (quoted) return quoted[1].replace(/''/g, "'").trim();
  const plain = text.split('/')[0].trim();
  return plain === 'T' ? true : plain === 'F' ? false : Number(plain);
}

/** An image: { values: Float32Array, shape }, the slowest axis first, as NumPy has it. */
function image(hdu) {
  const { header, data } = hdu;
  const read = { '-32': (i) => data.readFloatBE(4 * i), '-64': (i) => data.readDoubleBE(8 * i) }[header.BITPIX];
  if (!read) throw new Error(`expected an image of floats, got BITPIX ${header.BITPIX}`);
  const shape = [];
  for (let k = header.NAXIS; k >= 1; k--) shape.push(header[`NAXIS${k}`]);
  return { values: Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => read(i)), shape };
}

const WIDTH = { L: 1, B: 1, A: 1, I: 2, J: 4, E: 4, K: 8, D: 8 };

/** A column of a binary table, one number a row. */
function column(hdu, name) {
  const { header, data } = hdu;
  let offset = 0;
  for (let k = 1; k <= header.TFIELDS; k++) {
    const [, repeat, type] = /^(\d*)([A-Z])/.exec(header[`TFORM${k}`]);
    if (header[`TTYPE${k}`] === name) {
      const read = { E: (at) => data.readFloatBE(at), D: (at) => data.readDoubleBE(at) }[type];
      if (!read) throw new Error(`column ${name}: expected floats, got ${type}`);
      return Array.from({ length: header.NAXIS2 }, (_, i) => read(i * header.NAXIS1 + offset));
    }
    if (!(type in WIDTH)) throw new Error(`columns of type ${type} are not read`);
    offset += WIDTH[type] * (repeat === '' ? 1 : Number(repeat));
  }
  throw new Error(`no column ${name}`);
}

module.exports = { readFits, image, column };
